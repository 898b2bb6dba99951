"""The cache of outputs' memory: what it keeps, what it gives out again, and when it lets go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory_cache import KB, MB, N, cache, kept, output  # noqa: F401

import minidl.functional as F
from minidl import doctor, memory

# ---- reuse -----------------------------------------------------------------------------------------------------


def test_a_dead_output_serves_the_next_of_its_size():
    before = memory.stats()
    x = output()
    address = x.data_ptr()
    assert memory.stats() == before._replace(in_use=before.in_use + MB, fetched=before.fetched + 1)
    del x
    assert memory.stats() == before._replace(kept=MB, fetched=before.fetched + 1)
    x = output()
    assert x.data_ptr() == address
    assert memory.stats() == before._replace(
        in_use=before.in_use + MB, fetched=before.fetched + 1, reused=before.reused + 1
    )


def test_sizes_within_an_eighth_share_blocks_and_others_do_not():
    output(9 * N)
    for n, reused in ((9 * N - 1, 1), (8 * N + 1, 1), (8 * N, 0), (9 * N + 1, 0), (18 * N, 0), (N, 0)):
        before = memory.stats().reused
        output(n)
        assert memory.stats().reused - before == reused, n


def test_small_outputs_stay_with_malloc():
    before = memory.stats()
    output(8 * KB - 1)
    assert memory.stats() == before
    output(8 * KB)
    assert memory.stats() == before._replace(kept=32 * KB, fetched=before.fetched + 1)


def saved_by_autograd():
    x = torch.full((N,), 1.0, requires_grad=True)
    return F.sigmoid(x).sum()  # sum's node does not hold the sigmoid; sigmoid's own node does


def storage_of_output():
    return output().untyped_storage()


HOLDERS = {
    "tensor": output,
    "view": lambda: output()[7:9],
    "detached": lambda: output().detach(),
    "numpy": lambda: output().numpy(),
    "dlpack": lambda: torch.from_dlpack(output()),
    "storage": storage_of_output,
    "saved for backward": saved_by_autograd,
    "parameter": lambda: torch.nn.Parameter(output()),
    "set_": lambda: torch.empty(0).set_(output()),
    "lazy clone": lambda: torch._lazy_clone(output()),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_something_refers_to_is_not_given_out(holder):
    before = memory.stats().in_use
    held = HOLDERS[holder]()
    assert memory.stats().in_use - before == MB
    assert kept() == 0
    others = [output(value=2.0) for _ in range(3)]
    del others
    assert kept() == 3 * MB
    if holder == "saved for backward":
        held.backward()
    elif holder != "storage":
        assert (torch.as_tensor(held) == 1).all()
    del held
    assert kept() == 4 * MB
    assert memory.stats().in_use == before


def test_every_output_starts_at_64_bytes():
    for n in (1, 8 * KB, 8 * KB + 1, N - 1, N, N + 1, 5 * N // 3):
        for _ in range(2):
            assert output(n).data_ptr() % 64 == 0


# ---- the limit -------------------------------------------------------------------------------------------------


def test_no_more_than_the_limit_is_kept():
    memory.set_limit(3 * MB)
    xs = [output() for _ in range(5)]
    for x in range(5):
        del xs[-1]
        assert kept() == (1, 2, 3, 1, 2)[x] * MB  # the fourth finds no room, and all that was kept makes some
    memory.set_limit(2 * MB)
    assert kept() == 2 * MB
    memory.set_limit(2 * MB - 1)
    assert kept() == 0


def test_sizes_out_of_demand_make_room():
    memory.set_limit(4 * MB)
    output(4 * N)
    assert kept() == 4 * MB
    before = memory.stats().reused
    for _ in range(3):
        output(2 * N)
    assert kept() == 2 * MB
    assert memory.stats().reused - before == 2


def test_a_block_beyond_the_limit_is_not_kept_and_costs_the_others_nothing():
    memory.set_limit(2 * MB)
    for n in (2 * N + 1, 16 * N):
        output(n)
        assert kept() == 0
    output()
    output(16 * N)
    assert kept() == 1 * MB


def test_limit_0_keeps_nothing():
    output()
    memory.set_limit(0)
    assert kept() == 0
    before = memory.stats()
    for _ in range(3):
        output()
    assert memory.stats() == before._replace(fetched=before.fetched + 3)


def test_empty_cache_spares_what_is_in_use():
    x = output(value=3.0)
    output(2 * N)
    before = memory.stats()
    memory.empty_cache()
    assert memory.stats() == before._replace(kept=0)
    assert (x == 3).all()


def test_memory_that_there_is_not_is_an_error_and_counts_for_nothing():
    before = memory.stats()
    x = torch.ones(1).expand(2**44)
    with pytest.raises(RuntimeError, match="minidl: out of memory: cannot allocate 70368744177664 bytes"):
        F.matmul(x[:, None], torch.ones(1, 1))
    assert memory.stats() == before


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (None, TypeError)]
)
def test_a_bad_limit_changes_nothing(limit, error):
    before = memory.stats()
    with pytest.raises(error):
        memory.set_limit(limit)
    assert memory.stats() == before


def test_a_limit_beyond_all_memory_is_none():
    memory.set_limit(10**30)
    assert memory.stats().limit == sys.maxsize


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("variable", "limit"), [("", 2**30), ("0", 0), ("123456789", 123456789)])
def test_the_environment_sets_the_limit(variable, limit):
    ran = run_python("import minidl; print(minidl.memory.stats().limit)", MINIDL_CACHE_BYTES=variable)
    assert ran.stdout.strip() == str(limit)


@pytest.mark.parametrize("variable", ["1GB", "-1", "1e9", "off"])
def test_a_bad_limit_in_the_environment_is_an_error(variable):
    ran = run_python("import minidl", MINIDL_CACHE_BYTES=variable)
    assert ran.returncode == 1
    assert f"ValueError: minidl: MINIDL_CACHE_BYTES='{variable}' is not a number of bytes" in ran.stderr


def test_doctor_tells_the_limit():
    def line():
        return next(line for line in doctor.report() if line.startswith("memory"))

    assert "up to 64 MiB" in line()
    memory.set_limit(0)
    assert "the cache is off" in line()
