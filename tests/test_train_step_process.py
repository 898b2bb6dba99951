"""TrainStep among threads, processes and interruptions."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch

import minidl
from minidl import nn, optim


def mlp(width: int = 300):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 4))
    return model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=1e-3)


def batch(rows: int = 64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 20, generator=generator), torch.randint(0, 4, (rows,), generator=generator)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
def test_copies_train_alone(copied):
    step = minidl.TrainStep(*mlp())
    x, y = batch()
    step(x, y)
    twin = copied(step)
    before = copy.deepcopy(twin.model.state_dict())
    losses = [step(x, y).item() for _ in range(3)]
    for name, value in twin.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [twin(x, y).item() for _ in range(3)] == losses
    assert set(map(id, twin.optimizer.param_groups[0]["params"])) == set(map(id, twin.model.parameters()))


def test_grads_are_kept_only_if_wanted():
    step = minidl.TrainStep(*mlp())
    step(*batch())
    assert all(p.grad is None for p in step.model.parameters())
    step = minidl.TrainStep(*mlp(), keep_grads=True)
    for _ in range(2):
        step.optimizer.zero_grad()
        step(*batch())
        assert all(p.grad is not None for p in step.model.parameters())


def test_two_steps_in_two_threads():
    expected = minidl.TrainStep(*mlp()).fit(*batch(), epochs=200, batch_size=16, shuffle=False)
    steps = [minidl.TrainStep(*mlp()) for _ in range(2)]  # here: torch's generator is not a thread's own
    results: dict[int, torch.Tensor] = {}

    def train(i: int) -> None:
        results[i] = steps[i].fit(*batch(), epochs=200, batch_size=16, shuffle=False)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], expected)
    assert torch.equal(results[1], expected)


def test_one_step_in_two_threads():
    """They take turns: as many updates as calls."""
    step = minidl.TrainStep(*mlp(40))
    x, y = batch()
    step(x, y)
    threads = [threading.Thread(target=lambda: [step(x, y) for _ in range(300)]) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: step.fit(x, y, epochs=300, shuffle=False)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {int(s["step"]) for s in step.optimizer.state.values()} == {901}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    def losses() -> torch.Tensor:
        return minidl.TrainStep(*mlp(1000)).fit(*batch(500), epochs=4, batch_size=200, shuffle=False)

    expected, before = losses(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(losses(), expected)
    finally:
        torch.set_num_threads(before)


INTERRUPTED = """
import signal, sys, threading, os, torch, minidl
from minidl import nn, optim
signal.signal(signal.SIGINT, signal.default_int_handler)
model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
step = minidl.TrainStep(model, nn.MSELoss(), optim.Adam(model.parameters()))
x, y = torch.rand(4, 2), torch.rand(4, 1)
step(x, y)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    step.fit(x, y, epochs=5 * 10**7, shuffle=False)
except KeyboardInterrupt:
    counts = {int(s["step"]) for s in step.optimizer.state.values()}
    assert len(counts) == 1 and min(counts) > 10, counts
    assert all(p.isfinite().all() for p in model.parameters())
    step(x, y)
    assert {int(s["step"]) for s in step.optimizer.state.values()} == {counts.pop() + 1}
    print("stopped between two steps")
"""


def test_ctrl_c_leaves_a_consistent_model(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,  # not the source folder, which would hide the installed package
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout == "stopped between two steps\n", ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_can_train():
    step = minidl.TrainStep(*mlp())
    x, y = batch()
    expected = [step(x, y).item() for _ in range(3)]
    child = os.fork()
    if child == 0:
        fresh = minidl.TrainStep(*mlp())
        same = [fresh(x, y).item() for _ in range(3)] == expected
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
