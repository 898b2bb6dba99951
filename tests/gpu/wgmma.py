"""Hopper's own product against torch and float64: test_cuda.py runs it with MINIDL_CUDA_WGMMA=1.

Operands of either order, sizes that end within a tile and within a block of k, bias and relu; and whether the kernel
that ran was the one.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import minidl.functional as F


def check(x: Tensor, w: Tensor, b: Tensor) -> None:
    y, again = (F.linear(x, w, b, "relu") for _ in range(2))
    assert torch.equal(y, again), "other bits on a second run"
    exact = (x.double() @ w.double().t() + b.double()).relu()
    error = (y.double() - exact).abs().max().item()
    allowed = 2 * (torch.nn.functional.linear(x, w, b).relu().double() - exact).abs().max().item()
    assert error <= allowed, f"{x.dtype}, {tuple(x.shape)} x {tuple(w.shape)}: {error} > {allowed}"


def operand(rows: int, k: int, dense_along_k: bool, dtype: torch.dtype) -> Tensor:
    shape = (rows, k) if dense_along_k else (k, rows)
    x = torch.randn(shape, device="cuda").to(dtype)
    return x if dense_along_k else x.t()


def main() -> None:
    torch.manual_seed(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        count = 0
        for m, n, k in ((2048, 4096, 512), (3080, 3088, 1000), (4104, 2056, 72), (8192, 1032, 8)):
            orders = itertools.product((True, False), repeat=2)
            for (a, b), dtype in itertools.product(orders, (torch.bfloat16, torch.float16)):
                check(operand(m, k, a, dtype), operand(n, k, b, dtype), operand(n, 1, True, dtype)[:, 0])
                count += 2
        torch.cuda.synchronize()
    ran = sum("gemm_wgmma_kernel" in event.name for event in profile.events())
    assert ran == count, f"{ran} of {count} products ran on wgmma"
    print(f"{count} products agree")


if __name__ == "__main__":
    main()
