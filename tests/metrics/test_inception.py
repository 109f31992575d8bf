"""The Inception network against its published features; where weights come from, and which are refused."""

import collections
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from jebm.errors import DataError
from jebm.metrics import inception
from jebm.metrics.inception_network import resize_bilinear
from jebm.metrics.inception_weights import (
    ARCHIVE,
    WEIGHTS_SHA256,
    install,
    installed,
    network_shapes,
    read_weights,
    weights_hash,
)


@pytest.fixture(scope="module")
def weights_file() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("JEBM_DATA", "")) / "inception_fid.npz"
    if not os.environ.get("JEBM_DATA") or not path.exists():
        pytest.skip("no inception_fid.npz (environment variable JEBM_DATA names its directory)")
    return path


SMALL = {"conv/beta": (4,), "conv/w": (3, 1, 2, 4), "mixed_1/tower/conv_1/mean": (5,)}


@pytest.fixture
def small_weights() -> dict[str, np.ndarray]:
    """Stands for the network's tensors; the reader is given their shapes."""
    return {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in SMALL.items()}


# the network


def test_enlarging_reads_at_i_in_over_out():
    # TensorFlow 1: no half-pixel shift, so a row of 0, 3, 9 becomes 0, 1, 2, 3, 5, 7, and then stays
    row = np.array([0, 3, 9], np.uint8)
    enlarged = np.asarray(resize_bilinear(row[None, :, None, None], 9))
    np.testing.assert_allclose(enlarged[0, :, 0, 0], [0, 1, 2, 3, 5, 7, 9, 9, 9], atol=1e-5)
    column = np.asarray(resize_bilinear(np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1), 4))
    np.testing.assert_allclose(column[0, :, 0, 0], [0, 1.5, 3, 3], atol=1e-6)
    # smaller: every other pixel as it is, not a mean of two
    np.testing.assert_allclose(resize_bilinear(np.arange(8.0).reshape(1, 8, 1, 1), 4)[0, :, 0, 0], [0, 2, 4, 6])


def test_the_network_has_the_tensors_of_the_graph():
    shapes = network_shapes()
    assert len(shapes) == 4 * 94
    assert sum(np.prod(shape) for name, shape in shapes.items() if name.endswith(("/w", "/beta"))) == 21_768_352
    assert shapes["mixed_4/tower_1/conv_4/w"] == (1, 7, 128, 192)
    assert shapes["mixed_9/tower_1_mixed_conv_1/w"] == (3, 1, 384, 384)


@pytest.mark.golden
def test_features_of_the_published_network(weights_file, golden):
    case = golden("I1_inception")
    features = inception.inception_features(weights_file)
    assert features.declaration["weights_sha256"] == WEIGHTS_SHA256
    for size in (32, 64):
        expected = case[f"features{size}"]
        actual = features.function(case[f"images{size}"])
        assert actual.shape == expected.shape
        assert actual.dtype == np.float32
        assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()
    grey = case["images32"][:2, ..., :1]
    np.testing.assert_array_equal(features.function(grey), features.function(np.repeat(grey, 3, -1)))
    with pytest.raises(ValueError, match="got float32 images"):
        features.function(np.zeros((1, 32, 32, 3), np.float32))


@pytest.mark.slow
def test_real_cifar_against_real_cifar(weights_file):
    from jebm import data
    from jebm.evaluation import frechet_distance, statistics

    path = weights_file.with_name("cifar10.npz")
    if not path.exists():
        pytest.skip(f"no {path.name} beside the weights")
    source = data.load(f"npz:{path}")
    function = inception.inception_features(weights_file).function
    train, test = (statistics(function(images[:10_000])) for images in (source.train, source.test))
    assert abs(frechet_distance(train, test) - 5.21) < 0.05


# weights


def test_weights_are_installed_once_and_found_again(weights_file, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    assert installed() is None
    with pytest.raises(ValueError, match="jebm convert inception --weights"):
        inception.inception_features()
    path = install(weights_file)
    assert path == installed()
    assert path.is_relative_to(tmp_path / "cache")
    assert weights_hash(read_weights(path)) == WEIGHTS_SHA256


def test_other_weights_are_refused_by_their_hash(small_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    np.savez(fake_file := tmp_path / "fake.npz", **small_weights)
    with pytest.raises(ValueError, match=r"hash is [0-9a-f]{16}\.\.\., that of the FID network is 43af0041"):
        install(fake_file, SMALL)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match="no tensor|wanted is float32"):
        inception.inception_features(fake_file)


def test_the_hash_sees_names_shapes_and_values():
    weights = {"b/w": np.arange(4, dtype=np.float32), "a/beta": np.zeros(2, np.float32)}
    whole = weights_hash(weights)
    assert whole == weights_hash(dict(reversed(weights.items())))
    others = [
        {**weights, "b/w": weights["b/w"] + 1e-7},
        {**weights, "b/w": weights["b/w"].reshape(2, 2)},
        {"b/v": weights["b/w"], "a/beta": weights["a/beta"]},
    ]
    assert whole not in {weights_hash(other) for other in others}


def test_files_that_are_something_else(small_weights, tmp_path):
    missing, text, few = tmp_path / "no.npz", tmp_path / "text.npz", tmp_path / "few.npz"
    text.write_text("hello")
    np.savez(few, x=np.zeros(3))
    np.savez(tmp_path / "wrong.npz", **{**small_weights, "conv/w": small_weights["conv/w"][:, :, :1]})
    for path, message in {
        missing: "no such file",
        text: "neither an .npz of named tensors nor the archive",
        few: "no tensor 'conv/",
        tmp_path / "wrong.npz": r"'conv/w' is float32 \(3, 1, 1, 4\); wanted is float32 \(3, 1, 2, 4\)",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read_weights(path, SMALL)
        assert "\n" not in str(error.value)


class Scripted:
    """Stands for a module of an archive; its pickled class is ``__torch__.Scripted``."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Tensor:
    def __init__(self, array, archive):
        self.array, self.key = np.asarray(array, np.float32), str(len(archive))
        archive[self.key] = self.array.tobytes()


def rebuild(*_):
    raise AssertionError("the reader has its own")


class Writer(pickle.Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Storage) else None

    def reducer_override(self, value):
        if not isinstance(value, Tensor):
            return NotImplemented
        storage = Storage(value.key)
        return rebuild, (storage, 0, value.array.shape, (), False, collections.OrderedDict())


class Storage:
    def __init__(self, key):
        self.identity = ("storage", sys.modules["torch"].FloatStorage, key, "cpu", 0)


def archive_of(weights, monkeypatch, net=None):
    """A TorchScript archive of the kind in the wheel, written without PyTorch."""
    torch = types.ModuleType("torch")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    for name, module in {"torch": torch, "torch._utils": types.ModuleType("torch._utils"),
                         "__torch__": types.ModuleType("__torch__")}.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torch._utils"]._rebuild_tensor_v2 = rebuild
    monkeypatch.setattr(rebuild, "__module__", "torch._utils")
    monkeypatch.setattr(rebuild, "__qualname__", "_rebuild_tensor_v2")
    sys.modules["__torch__"].Scripted = Scripted
    monkeypatch.setattr(Scripted, "__module__", "__torch__")
    Scripted.__getstate__ = lambda self: dict(vars(self))

    storages: dict[str, bytes] = {}
    layers = Scripted()
    for name, array in weights.items():
        node = layers
        *folders, leaf = name.split("/")
        for folder in folders:
            node = vars(node).setdefault(folder, Scripted())
        torch_array = array.transpose(3, 2, 0, 1) if leaf == "w" else array
        setattr(node, "weight" if leaf == "w" else leaf, Tensor(torch_array, storages))
    pickled = io.BytesIO()
    Writer(pickled, protocol=2).dump(Scripted(net=net if net is not None else Scripted(layers=layers)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("out/data.pkl", pickled.getvalue())
        for key, content in storages.items():
            file.writestr(f"out/data/{key}", content)
    return buffer.getvalue()


def test_the_archive_in_the_wheel(small_weights, tmp_path, monkeypatch):
    content = archive_of(small_weights, monkeypatch)
    (tmp_path / "default.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr(ARCHIVE, content)
    for name in ("default.pt", "some.whl"):
        read = read_weights(tmp_path / name, SMALL)
        assert read.keys() == small_weights.keys()
        for tensor, array in small_weights.items():
            np.testing.assert_array_equal(read[tensor], array)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_an_archive_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(archive_of({}, monkeypatch, net=Malicious()))
    with pytest.raises(ValueError, match=r"'posix.mkdir' is not allowed in it"):
        read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "executed").exists()
