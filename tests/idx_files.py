"""Small IDX files for the tests: no test depends on data that a machine may or may not have."""

import gzip
from pathlib import Path

import matplotlib
import numpy as np
import torch

from minidl import data

MATPLOTLIB_CACHE = matplotlib.get_cachedir()


def idx_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    """The array (uint8) as an IDX file's bytes; `magic` replaces the right magic number."""
    header = (0x0800 + array.ndim if magic is None else magic).to_bytes(4, "big")
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def arrays(train: int = 300, test: int = 60, side: int = 6, classes: int = 3) -> list[np.ndarray]:
    """Easy images (the class is the row that is bright) and their labels, in the order of data.FILES."""
    rng = np.random.RandomState(0)
    result = []
    for count in (train, test):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = rng.randint(0, 60, (count, side, side)).astype(np.uint8)
        images[np.arange(count), labels] = 255
        result += [images, labels]
    return result


def write_set(folder: Path, gz: bool = True, content: list[np.ndarray] | None = None) -> Path:
    """Write the four files into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(data.FILES, content or arrays(), strict=True):
        raw = idx_bytes(array)
        if gz:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw, mtime=0))
        else:
            (folder / name).write_bytes(raw)
    return folder


def isolate(monkeypatch, tmp_path: Path) -> None:
    """Home, cache and working folder are empty, no mirror is named and no download allowed.

    One thread: these models are too small for two, which would wait for each other on a busy machine.
    """
    # A new home would make matplotlib look through all fonts again, which takes seconds in each child.
    monkeypatch.setenv("MPLCONFIGDIR", MATPLOTLIB_CACHE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for children
    torch.set_num_threads(1)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    monkeypatch.setattr(data, "MIRRORS", ())
    monkeypatch.setattr(data, "DEBIAN_FASHION", tmp_path / "debian")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
