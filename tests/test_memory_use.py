"""Nothing but speed shows of the memory cache: in training, to torch's machinery, between threads and processes."""

import io
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from memory_cache import KB, MB, N, cache, kept, output  # noqa: F401
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, Dataset

import minidl
import minidl.functional as F
import minidl.nn as nn
from minidl import memory

# ---- training --------------------------------------------------------------------------------------------------


def training(steps=3, create_graph=False):
    """The numbers of a small training, with intermediate results of 32 KB and more."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Softmax(1))
    optimizer = minidl.optim.Adam(model.parameters())
    x, target = torch.randn(128, 64), torch.rand(128, 64)
    numbers = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        if create_graph:
            grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            loss = loss + sum(g.square().sum() for g in grads)
        loss.backward(retain_graph=True)
        loss.backward()
        numbers += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    return [*numbers, *(p.detach().clone() for p in model.parameters())]


def test_a_training_step_gives_back_what_it_takes():
    training(1)
    before = memory.stats()
    training(3)
    after = memory.stats()
    assert after == before._replace(reused=after.reused)
    assert after.reused - before.reused >= 3 * 4


@pytest.mark.parametrize("create_graph", [False, True])
def test_results_are_those_without_a_cache(create_graph):
    """Kept memory is full of NaN: what an operator fails to write, or reads before it is written, would show."""
    memory.set_limit(0)
    expected = training(create_graph=create_graph)
    memory.set_limit(64 * MB)
    training(create_graph=create_graph)  # whose sizes are kept now
    poison()
    before = memory.stats().reused
    ours = training(create_graph=create_graph)
    assert memory.stats().reused > before
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


def poison():
    """Fills every kept block with NaN; none is larger than 1 MB."""
    held, size = [], 32 * KB
    while size <= MB:
        fetched = memory.stats().fetched
        while memory.stats().fetched == fetched:
            held.append(output(size // 4, torch.nan))
        size += 2 ** (size.bit_length() - 1) // 8
    assert kept() == 0


def all_operators():
    """Results and gradients of each operator that doctor knows, at a size above 32 KB."""
    torch.manual_seed(1)
    x, y, w = torch.rand(96, 160), torch.rand(96, 160), torch.rand(160, 160)
    classes = torch.arange(96) % 160
    functions = [
        lambda x: F.linear(x, w, w[0], "relu"), lambda x: F.matmul(x, w), lambda x: F.matmul(w, x.mT),
        F.relu, F.leaky_relu, F.sigmoid, F.tanh, F.gelu, F.silu, F.softplus,
        lambda x: F.softmax(x, 1), lambda x: F.log_softmax(x, 0), lambda x: F.cross_entropy(x, classes),
        lambda x: F.nll_loss(x, classes), lambda x: F.cross_entropy(x, y, label_smoothing=0.1),
        lambda x: F.mse_loss(x, y, reduction="none"), lambda x: F.l1_loss(x, y), lambda x: F.huber_loss(x, y),
        lambda x: F.smooth_l1_loss(x, y), lambda x: F.binary_cross_entropy(x, y, reduction="none"),
        lambda x: F.binary_cross_entropy_with_logits(x, y, weight=y),
    ]  # fmt: skip
    for f in functions:
        leaf = x.clone().requires_grad_()
        z = f(leaf)
        yield from (z.detach(), *torch.autograd.grad(z, leaf, torch.ones_like(z)))


def test_every_operator_writes_all_of_its_output(isa):
    memory.set_limit(0)
    expected = list(all_operators())
    memory.set_limit(64 * MB)
    del [*all_operators()][:]
    poison()
    before = memory.stats().reused
    ours = list(all_operators())
    assert memory.stats().reused - before > 20
    for i, (one, other) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(one, other), i


# ---- torch's machinery -----------------------------------------------------------------------------------------


def test_resize():
    x = output(value=2.0)
    x.resize_(3 * N)
    assert (x[:N] == 2).all()
    assert kept() == MB
    x.untyped_storage().resize_(0)
    assert kept() == 4 * MB
    x.resize_(N).fill_(5)
    y = output(value=1.0)
    assert (x == 5).all()
    assert (y == 1).all()


def test_set_lets_go_of_the_old_memory():
    x = output()
    x.set_(torch.ones(3))
    assert kept() == MB
    assert (x == 1).all()


def test_shared_memory_lets_go_of_the_block():
    x = output(value=2.0).share_memory_()
    assert x.is_shared()
    assert kept() == MB
    output(value=3.0)
    assert (x == 2).all()


def test_saving_and_pickling():
    x = output(value=2.0)[5:]
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    for copy in (torch.load(buffer), pickle.loads(pickle.dumps(x)), x.clone()):
        assert torch.equal(copy, x)


def test_the_profiler_sees_each_allocation():
    output()
    with torch.profiler.profile(profile_memory=True) as profile:
        x = F.relu(torch.ones(N))
        del x
    sizes = {event.key: event.self_cpu_memory_usage for event in profile.key_averages()}
    assert sizes["minidl::activation"] == MB
    assert sizes["[memory]"] == -2 * MB


# ---- threads and processes -------------------------------------------------------------------------------------


def churn(seed, rounds=150):
    """Allocates and frees at random, and says what was found overwritten."""
    generator = torch.Generator().manual_seed(seed)
    held, wrong = {}, []
    for i in range(rounds):
        n, slot = 8 * KB * int(torch.randint(1, 9, (), generator=generator)), i % 7
        if slot in held:
            x, value = held.pop(slot)
            if not (x == value).all():
                wrong.append((seed, i))
        value = float(seed * rounds + i + 1)
        held[slot] = output(n, value), value
    return wrong


def hammer(seed, rounds=5000):
    """Allocates and frees as fast as it can."""
    x = torch.ones(8 * KB)
    for _ in range(rounds):
        F.relu(x)


@pytest.mark.parametrize(("work", "rounds"), [(churn, 150), (hammer, 5000)])
def test_threads_share_the_cache_and_no_block(work, rounds):
    memory.set_limit(1 * MB)  # so that it is dropped often
    before, wrong = memory.stats(), []
    threads = [threading.Thread(target=lambda seed=seed: wrong.extend(work(seed) or [])) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = memory.stats()
    assert wrong == []
    assert after.in_use == before.in_use
    assert after.kept <= MB
    assert after.reused + after.fetched - before.reused - before.fetched == 6 * rounds


def test_a_tensor_may_die_on_another_thread():
    x = [output()]
    address = x[0].data_ptr()
    thread = threading.Thread(target=x.clear)
    thread.start()
    thread.join()
    assert kept() == MB
    assert output().data_ptr() == address


FORK = """
import os
import signal
import sys
import threading

import torch

import minidl.functional as F
from minidl import memory

torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
x, stop = torch.ones(8192), False

def allocate():
    while not stop:
        F.relu(x)

threads = [threading.Thread(target=allocate) for _ in range(2)]
for thread in threads:
    thread.start()
held, bad = F.relu(torch.full((65536,), 7.0)), []
for i in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends a child that waits for a lock which nobody holds
        right = all((F.relu(torch.full((n,), 3.0)) == 3).all() for n in (8192, 65536, 100000))
        memory.empty_cache()
        wrong = not (right and (held == 7).all() and memory.stats().kept == 0)
        (sys.exit if i == 0 else os._exit)(wrong)  # the first by the long way, through all of Python's and torch's ends
    bad.append(os.waitpid(child, 0)[1])
    if bad[-1]:
        break
stop = True
for thread in threads:
    thread.join()
print(sum(bad), len(bad), bool((held == 7).all()))
"""


def test_a_fork_while_other_threads_allocate():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout.strip() == "0 100 True"


class Doubled(Dataset):
    """Whose items are minidl's outputs, made in the worker."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return F.relu(torch.full((8 * KB,), 2.0 * i))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(context):
    output(8 * KB)
    loader = DataLoader(Doubled(), batch_size=2, num_workers=2, multiprocessing_context=context)
    for _ in range(2):
        batches = list(loader)
        assert torch.equal(torch.cat(batches)[:, 0], torch.arange(0.0, 16.0, 2))


def send(queue, done):
    torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
    queue.put(output(value=4.0))
    done.wait()  # the file behind the tensor lives as long as its sender


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_an_output_through_a_queue(strategy):
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(strategy)
    try:
        context = get_context("fork")
        queue, done = context.Queue(), context.Event()
        child = context.Process(target=send, args=(queue, done))
        child.start()
        x = queue.get(timeout=60)
        assert (x == 4).all()
        done.set()
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
