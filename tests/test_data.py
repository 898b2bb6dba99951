"""minidl.data: the IDX reader, where it looks, what it says, and the download against a loopback server."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import arrays, idx_bytes, isolate, write_set

from minidl import data
from minidl.data import DataError


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def name_content(monkeypatch: pytest.MonkeyPatch, kind: str, content: list[np.ndarray]) -> None:
    """Let this content count as the real data set `kind`."""
    digest = hashlib.sha256(b"".join(array.tobytes() for array in content)).hexdigest()
    monkeypatch.setitem(data.CONTENT_SHA256, digest, kind)


# --- the reader


@pytest.mark.parametrize("gz", [False, True])
def test_idx_roundtrip(tmp_path: Path, gz: bool) -> None:
    images = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    path = tmp_path / ("images.gz" if gz else "images")
    path.write_bytes(gzip.compress(idx_bytes(images)) if gz else idx_bytes(images))
    np.testing.assert_array_equal(data.read_idx(path, ndim=3), images)


GOOD = idx_bytes(np.arange(30, dtype=np.uint8).reshape(2, 3, 5))


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("magic", b"\x00\x00\x08\x01" + GOOD[4:], "magic number 0x00000801 instead of 0x00000803"),
        ("floats", b"\x00\x00\x0d\x03" + GOOD[4:], "magic number 0x00000d03"),
        ("html", b"<html>not found</html>", "magic number"),
        ("empty", b"", "truncated: 0 bytes"),
        ("header", GOOD[:15], "truncated: 15 bytes"),
        ("short", GOOD[:-1], "truncated: the header promises (2, 3, 5) = 30 bytes, 29 are there"),
        ("long", GOOD + b"\x00", "1 trailing bytes"),
        ("huge", GOOD[:4] + b"\xff" * 12 + GOOD[16:], "truncated: the header promises"),
        ("none", idx_bytes(np.zeros((0, 3, 5), np.uint8)), "empty: shape (0, 3, 5)"),
        ("plain.gz", GOOD, "not a whole gzip file"),
        ("cut.gz", gzip.compress(GOOD)[:-9], "not a whole gzip file"),
        (
            "garbled.gz",
            gzip.compress(GOOD)[:12] + b"\xff\xff" + gzip.compress(GOOD)[14:],
            "not a whole gzip file",
        ),
        ("trailing.gz", gzip.compress(GOOD) + b"more", "not a whole gzip file"),
        ("trailing-inside.gz", gzip.compress(GOOD + b"more"), "4 trailing bytes"),
    ],
)
def test_idx_rejects(tmp_path: Path, name: str, raw: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        data.read_idx(path, ndim=3)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert isinstance(error.value, ValueError)


def test_idx_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: cannot be read \(No such file"):
        data.read_idx(tmp_path / "absent", ndim=1)


# --- a folder


@pytest.mark.parametrize("gz", [False, True])
def test_folder(tmp_path: Path, gz: bool) -> None:
    content = arrays()
    dataset = data.load(root=write_set(tmp_path / "set", gz), say=lambda line: None)
    assert (dataset.kind, dataset.labels) == ("other", ("0", "1", "2"))
    assert dataset.train_x.shape == (300, 1, 6, 6)
    assert dataset.test_x.shape == (60, 1, 6, 6)
    assert dataset.train_x.dtype == torch.float32
    assert dataset.train_y.dtype == torch.int64
    assert torch.equal(dataset.train_y, torch.arange(300) % 3)
    torch.testing.assert_close(dataset.train_x[:, 0], torch.tensor(content[0] / 255, dtype=torch.float32))


def test_torchvision_root(tmp_path: Path) -> None:
    write_set(tmp_path / "root" / "MNIST" / "raw")
    lines: list[str] = []
    data.load(root=tmp_path / "root", say=lines.append)
    assert lines == [
        f"data: IDX images from {tmp_path}/root/MNIST/raw (--data-root): "
        "300 training and 60 test images of 6x6, 3 classes"
    ]


def test_only_the_real_thing_is_called_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_set(tmp_path / "MNIST" / "raw")
    assert data.load(root=root).name == "IDX images"
    name_content(monkeypatch, "mnist", arrays())
    assert data.load(root=root).name == "MNIST"
    one_pixel = arrays()
    one_pixel[2][0, 0, 0] ^= 1
    assert data.load(root=write_set(root, content=one_pixel)).name == "IDX images"


def test_root_without_files_names_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        data.load(root=tmp_path)
    for words in (*data.FILES, str(tmp_path), str(tmp_path / "MNIST" / "raw")):
        assert words in str(error.value)


def test_root_with_a_missing_file(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"set: t10k-labels-idx1-ubyte \(plain or \.gz\) is missing"):
        data.load(root=root)


def test_root_with_a_broken_file(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", gz=False)
    with (root / "t10k-images-idx3-ubyte").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: 1 trailing bytes"):
        data.load(root=root)


@pytest.mark.parametrize(("images", "labels"), [(0, 1), (2, 3)])
def test_counts_must_agree(tmp_path: Path, images: int, labels: int) -> None:
    content = arrays()
    content[labels] = content[labels][:-2]
    count = len(content[images])
    with pytest.raises(DataError, match=f"{data.FILES[labels]}.gz: {count - 2} labels for {count} images"):
        data.load(root=write_set(tmp_path / "set", content=content))


def test_sizes_must_agree(tmp_path: Path) -> None:
    content = [*arrays()[:2], *arrays(side=7)[2:]]
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: images of \(7, 7\)"):
        data.load(root=write_set(tmp_path / "set", content=content))


# --- the order of places


def test_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the places from the last to the first: each in turn must win."""
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "env"))
    for folder in (
        data.DEBIAN_FASHION,
        Path.home() / "data" / "MNIST" / "raw",
        tmp_path / "work" / "data" / "MNIST" / "raw",
        data.cache_folder(),
        tmp_path / "env" / "MNIST" / "raw",
        tmp_path / "env",
    ):
        seen = str(folder).removeprefix(f"{tmp_path}/work/") + " ("
        assert not data.load(say=lambda line: None).source.startswith(seen)
        write_set(folder)
        assert data.load(say=lambda line: None).source.startswith(seen)
    root = write_set(tmp_path / "root")
    assert str(root) in data.load(root=root).source


def test_cache_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache" / "minidl" / "mnist"


def test_env_without_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "slip"))
    lines: list[str] = []
    assert data.load(say=lines.append).kind == "digits"
    assert lines[0] == f"$MINIDL_DATA is {tmp_path}/slip, which holds no data set"


def test_broken_place_is_skipped_aloud(tmp_path: Path) -> None:
    (write_set(data.cache_folder()) / "train-labels-idx1-ubyte.gz").write_bytes(b"junk")
    write_set(tmp_path / "work" / "data" / "MNIST" / "raw")
    lines: list[str] = []
    assert data.load(say=lines.append).source == "data/MNIST/raw (torchvision)"
    assert "skipping cache" in lines[0]
    assert "train-labels-idx1-ubyte.gz: not a whole gzip file" in lines[0]


def test_kind_restricts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_content(monkeypatch, "fashion", arrays())
    write_set(data.DEBIAN_FASHION)
    dataset = data.load("fashion")
    assert (dataset.name, dataset.labels[9]) == ("Fashion-MNIST", "ankle boot")
    assert data.load("auto").name == "Fashion-MNIST"
    with pytest.raises(DataError, match="MINIDL_OFFLINE forbids"):
        data.load("mnist")
    with pytest.raises(DataError, match=r"not what --data mnist asks for: .* holds Fashion-MNIST"):
        data.load("mnist", root=data.DEBIAN_FASHION)


def test_fashion_beside_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "work" / "data" / "MNIST" / "raw")
    fashion = arrays(side=5)
    name_content(monkeypatch, "fashion", fashion)
    write_set(tmp_path / "work" / "data" / "FashionMNIST" / "raw", content=fashion)
    assert data.load("fashion").source == "data/FashionMNIST/raw (torchvision)"
    assert data.load("fashion", root="data").kind == "fashion"
    assert data.load("auto").kind == "other"


def test_fashion_absent() -> None:
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        data.load("fashion")


def test_unknown_kind() -> None:
    with pytest.raises(DataError, match="choose from auto, mnist, fashion, digits"):
        data.load("cifar")


def test_search_report(tmp_path: Path) -> None:
    write_set(data.DEBIAN_FASHION)
    (write_set(data.cache_folder()) / "train-labels-idx1-ubyte.gz").unlink()
    report = data.search_report()
    assert f"Debian's dataset-fashion-mnist: {tmp_path}/debian: IDX images" in report
    assert "torchvision: data/MNIST/raw: nothing there" in report
    assert any(line.startswith("cache: ") and "train-labels-idx1-ubyte" in line for line in report)


# --- scikit-learn's digits


def test_digits() -> None:
    lines: list[str] = []
    dataset = data.load("digits", say=lines.append)
    assert lines == [
        "data: 8x8 digits from scikit-learn: 1437 training and 360 test images of 8x8, 10 classes"
    ]
    assert dataset.train_x.shape == (1437, 1, 8, 8)
    assert (dataset.train_x.min(), dataset.train_x.max()) == (0, 1)
    assert dataset.train_y.dtype == torch.int64
    assert torch.equal(data.digits().test_x, dataset.test_x)
    assert dataset.test_y[:8].tolist() == [7, 9, 4, 7, 0, 2, 6, 1]  # the split never changes


def test_digits_take_no_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="take no --data-root"):
        data.load("digits", root=tmp_path)


def test_digits_without_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'minidl\[lessons\]'"):
        data.load("auto")


# --- the download


class Mirror(BaseHTTPRequestHandler):
    """/good/FILE, and what goes wrong on the internet: /cut/, /wrong/, /slow/; anything else is not found."""

    files: dict[str, bytes]
    release: threading.Event
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        _, manner, name = self.path.split("/")
        body = self.files.get(name)
        if body is None or manner not in ("good", "cut", "wrong", "slow"):
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if manner == "slow":
            self.release.wait(20)
        elif manner == "cut":
            self.wfile.write(body[: len(body) // 2])
        elif manner == "wrong":
            self.wfile.write(body[:-1] + b"?")
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a mirror with small files that count as MNIST."""
    folder = write_set(tmp_path / "served")
    Mirror.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Mirror.release, Mirror.requests = threading.Event(), []
    for name in data.FILES:
        monkeypatch.setitem(data.GZ_SHA256, name, hashlib.sha256(Mirror.files[f"{name}.gz"]).hexdigest())
    name_content(monkeypatch, "mnist", arrays())
    monkeypatch.setattr(data, "TIMEOUT", 0.5)
    monkeypatch.delenv("MINIDL_OFFLINE")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        Mirror.release.set()
        http.shutdown()
        thread.join()


def mirrors(monkeypatch: pytest.MonkeyPatch, server: str, *manners: str) -> None:
    monkeypatch.setattr(data, "MIRRORS", tuple(f"{server}/{manner}/" for manner in manners))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_download(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors(monkeypatch, server, "good")
    lines: list[str] = []
    dataset = data.load(say=lines.append)
    assert dataset.name == "MNIST"
    assert dataset.source == f"{data.cache_folder()} (cache)"
    assert lines[0] == f"downloading MNIST (12 MB) into {data.cache_folder()}"
    assert contents(data.cache_folder().parent) == {
        f"mnist/{name}": raw for name, raw in Mirror.files.items()
    }
    asked = len(Mirror.requests)
    assert data.load("mnist").name == "MNIST"
    assert len(Mirror.requests) == asked  # the second time it is in the cache


FAILURES = [
    ("cut", "the connection was cut after|IncompleteRead"),
    ("wrong", "wrong checksum"),
    ("absent", "404"),
    ("slow", "timed out"),
]


@pytest.mark.parametrize(("manner", "reason"), FAILURES)
def test_second_mirror_helps(server: str, monkeypatch: pytest.MonkeyPatch, manner: str, reason: str) -> None:
    mirrors(monkeypatch, server, manner, "good")
    assert data.load("mnist").name == "MNIST"
    assert any(path.startswith(f"/{manner}/") for path in Mirror.requests)


@pytest.mark.parametrize(("manner", "reason"), FAILURES)
@pytest.mark.parametrize("old", ["no cache", "broken cache"])
def test_failure_keeps_the_old_state(
    server: str, monkeypatch: pytest.MonkeyPatch, manner: str, reason: str, old: str
) -> None:
    cache = data.cache_folder()
    if old == "broken cache":
        (write_set(cache, gz=False) / "t10k-labels-idx1-ubyte").write_bytes(b"junk")
    before = contents(cache.parent)
    # Three files arrive well; the last one does not.
    last = f"{data.FILES[-1]}.gz"
    Mirror.files[last], right = Mirror.files[last] + b"?", Mirror.files[last]
    mirrors(monkeypatch, server, "good", manner)
    with pytest.raises(
        DataError, match=rf"{last} could not be downloaded \(.*wrong checksum.*({reason})"
    ) as error:
        data.load("mnist")
    assert f"{server}/{manner}/" in str(error.value)
    assert contents(cache.parent) == before
    lines: list[str] = []
    assert data.load("auto", say=lines.append).kind == "digits"
    assert any(line.startswith("no MNIST: ") for line in lines)
    assert contents(cache.parent) == before
    # And the next attempt, with everything right, mends it.
    Mirror.files[last] = right
    assert data.load("auto").name == "MNIST"


def test_interrupt_keeps_the_old_state(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors(monkeypatch, server, "good")
    fetch = data._get

    def interrupted(url: str, target: Path) -> str:
        if "t10k-images" in url:
            raise KeyboardInterrupt
        return fetch(url, target)

    monkeypatch.setattr(data, "_get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert contents(data.cache_folder().parent) == {}
    assert list(data.cache_folder().parent.glob("download-*")) == []


def test_server_gone(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DataError, match="Connection refused"):
        data.load("mnist")


def test_cache_cannot_be_written(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors(monkeypatch, server, "good")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written"):
        data.load("mnist")


def test_offline_asks_nobody(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors(monkeypatch, server, "good")
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    assert data.load("auto").kind == "digits"
    assert Mirror.requests == []


def test_progress_without_tqdm(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors(monkeypatch, server, "good")
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    assert data.load("mnist").name == "MNIST"
