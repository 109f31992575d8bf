"""``jebm data prepare NAME``: archives from the authors' files, compared by hash, downloaded or brought."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import pathlib
import tarfile
import threading

import numpy as np
import pytest
from helpers import ROOT

from jebm import data
from jebm.commands.main import main, parse
from jebm.config import load_file, named
from jebm.data.prepare import archives
from jebm.data.prepare.catalogue import ARCHIVES, CATALOGUE
from jebm.errors import ConfigError
from jebm.methods import given_generator
from jebm.runs.run import load_source

NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.chdir(tmp_path)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def small_mnist():
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 11), ("test", 5)):
        arrays |= {f"x_{split}": random.integers(0, 256, (n, 28, 28, 1)), f"y_{split}": np.arange(n) % 10}
    keys = ("x_train", "y_train", "x_test", "y_test")
    contents = [idx(arrays[key][..., 0] if key[0] == "x" else arrays[key]) for key in keys]
    return arrays, {f"{name}-ubyte.gz": content for name, content in zip(NAMES, contents, strict=True)}


def expect(monkeypatch, name, contents, address="http://nowhere.invalid"):
    """The catalogue expects these files, at this address."""
    downloads = [
        dataclasses.replace(
            download, url=f"{address}/{path.name}", size=len(contents[path.name]),
            sha256=hashlib.sha256(contents[path.name]).hexdigest(),
        )
        for download in CATALOGUE[name].downloads
        for path in [pathlib.Path(download.name)]
    ]  # fmt: skip
    monkeypatch.setitem(CATALOGUE, name, dataclasses.replace(CATALOGUE[name], downloads=tuple(downloads)))


@contextlib.contextmanager
def server(contents, lengths=()):
    """Serves files by name; says of some that they have another length."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            asked.append(name)
            self.send_response(200 if name in contents else 404)
            self.send_header("Content-Length", str(dict(lengths).get(name, len(contents.get(name, b"")))))
            self.end_headers()
            self.wfile.write(contents.get(name, b""))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}", asked
        finally:
            serving.shutdown()
            thread.join()


def test_the_archive_holds_what_was_downloaded(monkeypatch, tmp_path, capsys):
    arrays, contents = small_mnist()
    with server(contents) as (address, asked):
        expect(monkeypatch, "mnist", contents, address)
        assert main(["data", "prepare", "mnist"]) == 0
        assert len(asked) == 4
        (tmp_path / "data/mnist.npz").unlink()
        assert main(["data", "prepare", "mnist"]) == 0  # the originals are kept
        assert len(asked) == 4
    assert "11 to train, 5 held out; 28 x 28 x 1, uint8" in capsys.readouterr().out
    with np.load("data/mnist.npz") as archive:
        for name, array in arrays.items():
            np.testing.assert_array_equal(archive[name], array)
    source = data.load("npz:data/mnist.npz")
    assert (source.num_classes, source.train.dtype) == (10, np.uint8)


def test_sets_with_files_of_one_name_are_kept_apart(monkeypatch):
    _, contents = small_mnist()
    with server(contents) as (address, asked):
        for name in ("mnist", "fashion_mnist"):
            expect(monkeypatch, name, contents, address)
            assert main(["data", "prepare", name]) == 0
    assert len(asked) == 8


def test_brought_files_make_the_same_archive(monkeypatch, tmp_path):
    arrays, contents = small_mnist()
    expect(monkeypatch, "mnist", contents)
    (tmp_path / "mine").mkdir()
    for name, content in contents.items():
        (tmp_path / "mine" / name).write_bytes(content)
    assert main(["data", "prepare", "mnist", "--originals", "mine", "--out", "x/m.npz"]) == 0
    with np.load("x/m.npz") as archive:
        np.testing.assert_array_equal(archive["x_test"], arrays["x_test"])


def test_cifar10_comes_from_its_records(monkeypatch, tmp_path):
    random = np.random.default_rng(1)
    pixels, labels = random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, rows in (("data_batch_1.bin", slice(0, 4)), ("test_batch.bin", slice(4, 6))):
            records = np.concatenate([labels[rows, None], pixels[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)], 1)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.size
            archive.addfile(member, io.BytesIO(records.tobytes()))
    contents = {"cifar-10-binary.tar.gz": stream.getvalue()}
    expect(monkeypatch, "cifar10", contents)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(contents["cifar-10-binary.tar.gz"])
    assert main(["data", "prepare", "cifar10", "--originals", "."]) == 0
    with np.load("data/cifar10.npz") as archive:
        np.testing.assert_array_equal(np.concatenate([archive["x_train"], archive["x_test"]]), pixels)
        np.testing.assert_array_equal(np.concatenate([archive["y_train"], archive["y_test"]]), labels)


def wrong(contents):
    return contents | {"t10k-images-idx3-ubyte.gz": b"another"}, ()


def cut(contents):
    name = "train-images-idx3-ubyte.gz"
    return contents | {name: contents[name][:50]}, [(name, len(contents[name]))]


def missing(contents):
    return {name: content for name, content in contents.items() if not name.startswith("t10k")}, ()


@pytest.mark.parametrize(
    ("change", "words"),
    [(wrong, "its SHA-256 is"), (cut, "broke off after 50 of"), (missing, "cannot be downloaded .*bring it by hand")],
)
def test_a_bad_download_leaves_no_archive_and_goes_on_later(change, words, monkeypatch):
    _, contents = small_mnist()
    served, lengths = change(contents)
    with server(served, lengths) as (address, _):
        expect(monkeypatch, "mnist", contents, address)
        with pytest.raises(data.DataError, match=words):
            archives.prepare_archive("mnist", pathlib.Path("m.npz"), None, lambda line: None)
    assert not pathlib.Path("m.npz").exists()
    with server(contents) as (address, asked):
        expect(monkeypatch, "mnist", contents, address)
        archives.prepare_archive("mnist", pathlib.Path("m.npz"), None, lambda line: None)
    assert 0 < len(asked) <= 4  # whole files are not downloaded again
    assert pathlib.Path("m.npz").is_file()


def test_brought_files_are_those_of_the_authors(monkeypatch, tmp_path, capsys):
    _, contents = small_mnist()
    expect(monkeypatch, "mnist", contents)
    assert main(["data", "prepare", "mnist", "--originals", "."]) == 2
    assert "holds no train-images-idx3-ubyte.gz: bring it from http" in capsys.readouterr().err
    for name in contents:
        (tmp_path / name).write_bytes(b"mine")
    assert main(["data", "prepare", "mnist", "--originals", "."]) == 2
    err = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz: its SHA-256 is" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (b"no gzip", None, "broken, or another file than expected"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(12) + b"more"), None, "4 bytes of content for the shape"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12)), None, "broken, or another file"),
        (None, idx(np.array([1, 2])), "2 labels up to 2 of 11 images"),
        (None, idx(np.array([10] * 11)), "11 labels up to 10 of 11 images"),
    ],
)
def test_broken_originals_are_one_line(images, labels, words, tmp_path):
    _, contents = small_mnist()
    contents |= {"train-images-idx3-ubyte.gz": images} if images else {"train-labels-idx1-ubyte.gz": labels}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    original = archives.READERS["mnist"]([tmp_path / f"{name}-ubyte.gz" for name in NAMES])
    with pytest.raises(data.DataError, match=words) as error:
        list(original.splits["train"]())
    assert "\n" not in str(error.value)


MISTAKES = {
    "data prepare digits": "prepare is for tfds:NAME, and for archives of mnist",
    "data prepare tfds:cifar10 --out x.npz": "--out and --originals are for 'jebm data prepare NAME'",
    "data info mnist": "'jebm data prepare mnist' makes npz:data/mnist.npz",
    "data prepare mnst": "points:NAME; 'jebm data prepare mnist' makes npz:data/mnist.npz",
    "data prepare mnist --out x.png": "--out x.png: give the name of an .npz",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, capsys):
    assert main(line.split()) == 2
    assert MISTAKES[line] in capsys.readouterr().err


# --- the first command of each configuration ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in named() if not name.startswith("digits/") and not name.endswith("points")]
)
def test_where_data_are_missing_the_error_names_the_command(name):
    """That command is one, and it is of the file or set that the configuration reads."""
    config = load_file(ROOT / "configs" / f"{name}.py")
    shape = (config.method.image_size, config.method.image_size, config.method.channels)
    with pytest.raises(ConfigError, match=r"'jebm data prepare [^']*'") as error:
        load_source(config, shape)
    line = str(error.value).partition("'jebm ")[2].partition("'")[0]
    options = parse(line.split())
    kind, _, argument = config.data.source.partition(":")
    if kind == "npz":
        assert options.source in ARCHIVES
        assert pathlib.Path(f"data/{options.source}.npz") == pathlib.Path(argument)
    else:
        assert options.source.split(":")[:2] == config.data.source.split(":")[:2]


def test_a_generator_that_is_missing_names_the_command():
    for name in named():
        config = load_file(ROOT / "configs" / f"{name}.py")
        path = given_generator(config)
        if path is not None:
            from jebm.runs.run import build

            with pytest.raises(ConfigError, match=f"{path} is no run directory .* train one with 'jebm train'"):
                build(config)


def test_an_archive_of_another_place_is_named_too():
    with pytest.raises(data.DataError, match="'jebm data prepare mnist --out sets/mnist.npz'"):
        data.load("npz:sets/mnist.npz")
