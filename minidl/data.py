"""Image data for the lessons: found on this machine, downloaded, or the small digits of scikit-learn.

`load()` is the way in. It says in one line which data set it uses and where that came from. IDX files have
the same four names whatever is inside, so a set is called "MNIST" or "Fashion-MNIST" only when its pixels and
labels are exactly those: the name comes from a checksum of the content.
"""

import gzip
import hashlib
import http.client
import math
import os
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHOICES = ("auto", "mnist", "fashion", "digits")
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 5.0  # seconds without an answer, not for the whole file
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
GZ_SHA256 = {  # of MNIST's four .gz files, as every mirror serves them
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CONTENT_SHA256 = {  # of the four arrays' bytes in the order of FILES -> the kind of data
    "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16": "mnist",
    "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f": "fashion",
}
NAMES = {
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "digits": "8x8 digits",
    "other": "IDX images",
}
FASHION_LABELS = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class DataError(ValueError):
    """The data cannot be had, or is not what it should be. The message names the file and the reason."""


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, split into a training and a test part.

    kind: "mnist", "fashion", "digits", or "other" for IDX files with unknown content.
    source: where it came from, in words. labels: the name of each class.
    train_x, test_x: float32 (N, 1, H, W) in [0, 1]. train_y, test_y: int64 (N,).
    """

    kind: str
    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    def __str__(self) -> str:
        height, width = self.train_x.shape[2:]
        return (
            f"{self.name} from {self.source}: {len(self.train_x)} training and {len(self.test_x)} test "
            f"images of {height}x{width}, {len(self.labels)} classes"
        )


@dataclass(frozen=True)
class Place:
    """A folder to look in, and what led there ("--data-root", "cache", ...)."""

    what: str
    folder: Path

    def has_files(self) -> bool:
        """True where at least one of the four files is: an incomplete set deserves a message, not silence."""
        return any(path.is_file() for name in FILES for path in _spellings(self.folder, name))


def load(data: str = "auto", root: str | Path | None = None, say: Callable[[str], object] = print) -> Dataset:
    """Find the data set `data` (one of CHOICES), tell `say` which one it is, and return it.

    With `root`, only that folder counts. Otherwise the places of `search_places` are tried in order, then
    MNIST is downloaded into the cache, and "auto" at last takes the digits that scikit-learn ships.
    Raises DataError where the data cannot be had.
    """
    if data not in CHOICES:
        raise DataError(f"unknown data set {data!r}: choose from {', '.join(CHOICES)}")
    if data == "digits":
        if root is not None:
            raise DataError("--data digits come with scikit-learn: they take no --data-root")
        dataset = digits()
    else:
        dataset = _from_places(data, root, say) or _without_files(data, say)
    say(f"data: {dataset}")
    return dataset


def search_places(data: str = "auto", root: str | Path | None = None) -> list[Place]:
    """The folders in which `load` looks for IDX files, in order. An explicit root leaves no other place."""
    if root is not None:
        return _under("--data-root", Path(root))
    places = []
    if given := os.environ.get("MINIDL_DATA"):
        places += _under("$MINIDL_DATA", Path(given))
    places.append(Place("cache", cache_folder()))
    # torchvision has no fixed root: these are the ones that its tutorials and examples use.
    roots = [Path("data"), Path("..", "data"), Path.home() / "data"]
    places += [Place("torchvision", folder / "MNIST" / "raw") for folder in roots]
    if data == "fashion":
        places += [Place("torchvision", folder / "FashionMNIST" / "raw") for folder in roots]
    return [*places, Place("Debian's dataset-fashion-mnist", DEBIAN_FASHION)]


def search_report(root: str | Path | None = None) -> list[str]:
    """One line for each place where `--data auto` looks, with what is there. For `minidl doctor`."""
    lines = []
    for place in search_places(root=root):
        if not place.has_files():
            state = "nothing there"
        else:
            try:
                state = read_folder(place).name
            except DataError as error:
                state = f"unusable: {error}"
        lines.append(f"{place.what}: {place.folder}: {state}")
    return lines


def cache_folder() -> Path:
    """Where downloads go: $XDG_CACHE_HOME/minidl/mnist, by default ~/.cache/minidl/mnist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidl" / "mnist"


def digits() -> Dataset:
    """The 1797 handwritten 8x8 digits that scikit-learn ships.

    1437 to train and 360 to test, always split alike. Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the 8x8 digits come with scikit-learn: pip install 'minidl[lessons]'") from error
    bunch = load_digits()
    # RandomState, not default_rng: numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    x = torch.from_numpy(bunch.images[order].astype(np.float32)).div_(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target[order].astype(np.int64))
    labels = tuple(str(digit) for digit in range(10))
    return Dataset("digits", "scikit-learn", x[:1437], y[:1437], x[1437:], y[1437:], labels)


def read_folder(place: Place) -> Dataset:
    """Read the four IDX files of a folder. Raises DataError where one is missing, broken or unfit."""
    paths = [_locate(place.folder, name) for name in FILES]
    arrays = [read_idx(path, ndim=3 if "images" in path.name else 1) for path in paths]
    train_x, train_y, test_x, test_y = arrays
    for images, targets, path in ((train_x, train_y, paths[1]), (test_x, test_y, paths[3])):
        if len(images) != len(targets):
            raise DataError(f"{path}: {len(targets)} labels for {len(images)} images")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{paths[2]}: images of {test_x.shape[1:]}, but those to train on are {train_x.shape[1:]}"
        )
    content = hashlib.sha256()
    for array in arrays:
        content.update(array.data)
    kind = CONTENT_SHA256.get(content.hexdigest(), "other")
    classes = 1 + max(int(train_y.max()), int(test_y.max()))
    labels = FASHION_LABELS if kind == "fashion" else tuple(str(number) for number in range(classes))
    return Dataset(
        kind,
        f"{place.folder} ({place.what})",
        _pixels(train_x),
        torch.from_numpy(train_y.astype(np.int64)),
        _pixels(test_x),
        torch.from_numpy(test_y.astype(np.int64)),
        labels,
    )


def read_idx(path: Path, ndim: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The uint8 array of `ndim` dimensions in an IDX file, plain or (by its suffix) gzipped. Read-only.

    Raises DataError with the file's name and the reason for anything but exactly one whole, non-empty array.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    header, magic = 4 + 4 * ndim, 0x0800 + ndim  # 0x08: unsigned bytes; then the number of dimensions
    if len(raw) < header:
        raise DataError(f"{path}: truncated: {len(raw)} bytes, and the header alone has {header}")
    if (found := int.from_bytes(raw[:4], "big")) != magic:
        raise DataError(
            f"{path}: magic number 0x{found:08x} instead of 0x{magic:08x} (bytes, {ndim} dimensions)"
        )
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4))
    expected, size = math.prod(shape), len(raw) - header
    if size < expected:
        raise DataError(
            f"{path}: truncated: the header promises {shape} = {expected} bytes, {size} are there"
        )
    if size > expected:
        raise DataError(f"{path}: {size - expected} trailing bytes after the {expected} of shape {shape}")
    if expected == 0:
        raise DataError(f"{path}: empty: shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def download(folder: Path, say: Callable[[str], object] = print) -> None:
    """Download MNIST's four .gz files into `folder`, checked against their SHA-256.

    They arrive in a temporary folder beside it and move only when all four are right, so whatever goes wrong
    (or Ctrl-C) leaves `folder` as it was. Raises DataError with what each mirror answered.
    """
    say(f"downloading MNIST (12 MB) into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="download-") as arriving:
            for name in FILES:
                _fetch(f"{name}.gz", Path(arriving), GZ_SHA256[name])
            for name in FILES:
                os.replace(Path(arriving, f"{name}.gz"), folder / f"{name}.gz")
                (folder / name).unlink(missing_ok=True)  # an older plain file would be read first
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _fetch(file: str, folder: Path, sha256: str) -> None:
    """Get one file from the first mirror that has the right one. Raises DataError where none has."""
    failures = []
    for mirror in MIRRORS:
        try:
            found = _get(mirror + file, folder / file)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            failures.append(f"{mirror}: {str(error).strip('<>') or type(error).__name__}")
            continue
        if found == sha256:
            return
        failures.append(f"{mirror}: wrong checksum, so not the file that was asked for, or not all of it")
    raise DataError(f"{file} could not be downloaded ({'; '.join(failures)})")


def _get(url: str, target: Path) -> str:
    """Store what `url` answers and return its SHA-256, with a progress bar on a terminal."""
    checksum = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as reply, target.open("wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        with _progress(size, target.name) as advance:
            while chunk := reply.read(1 << 16):
                file.write(chunk)
                checksum.update(chunk)
                advance(len(chunk))
        if file.tell() < size:
            raise OSError(f"the connection was cut after {file.tell()} of {size} bytes")
    return checksum.hexdigest()


@contextmanager
def _progress(size: int, name: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, where tqdm is installed; nothing otherwise."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    quiet = not sys.stderr.isatty()
    with tqdm(total=size or None, desc=name, unit="B", unit_scale=True, disable=quiet) as bar:
        yield bar.update


def _from_places(data: str, root: str | Path | None, say: Callable[[str], object]) -> Dataset | None:
    places = search_places(data, root)
    filled = [place for place in places if place.has_files()]
    given = "$MINIDL_DATA"
    if any(place.what == given for place in places) and not any(place.what == given for place in filled):
        say(f"{given} is {os.environ['MINIDL_DATA']}, which holds no data set")  # a slip of the pen, probably
    found = []
    for place in filled:
        try:
            dataset = read_folder(place)
        except DataError as error:
            if root is not None:
                raise
            say(f"skipping {place.what}: {error}")
            continue
        if data in ("auto", dataset.kind):
            return dataset
        found.append(f"{place.folder} holds {dataset.name}")
    if root is None:
        return None
    if found:
        raise DataError(f"--data-root {root}: not what --data {data} asks for: {'; '.join(found)}")
    folders = ", ".join(str(place.folder) for place in places)
    raise DataError(
        f"--data-root {root}: looked for {', '.join(FILES)} (plain or .gz) in {folders}, found none"
    )


def _without_files(data: str, say: Callable[[str], object]) -> Dataset:
    """What remains when no folder has the files: the download, then the digits."""
    if data == "fashion":
        raise DataError(
            "Fashion-MNIST is not on this machine: apt install dataset-fashion-mnist, or --data-root"
        )
    folder = cache_folder()
    try:
        if os.environ.get("MINIDL_OFFLINE"):
            raise DataError("MNIST is not on this machine, and $MINIDL_OFFLINE forbids the download")
        download(folder, say)
        return read_folder(Place("cache", folder))
    except DataError as error:
        if data == "mnist":
            raise
        say(f"no MNIST: {error}")
    return digits()


def _under(what: str, root: Path) -> list[Place]:
    root = root.expanduser()
    return [
        Place(what, root),
        Place(what, root / "MNIST" / "raw"),
        Place(what, root / "FashionMNIST" / "raw"),
    ]


def _spellings(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _locate(folder: Path, name: str) -> Path:
    for path in _spellings(folder, name):
        if path.is_file():
            return path
    raise DataError(f"{folder}: {name} (plain or .gz) is missing")


def _pixels(images: "np.ndarray[Any, np.dtype[np.uint8]]") -> Tensor:
    return torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)
