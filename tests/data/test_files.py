"""Image files, crops, and batches that are read ahead: the same for any number of workers and hosts."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jebm import data
from jebm.commands.main import main
from jebm.config import DataConfig
from jebm.data import image_set
from jebm.data.loader import crop_words
from jebm.errors import ConfigError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twenty colour images of several sizes, two levels deep."""
    root = tmp_path / "photos"
    for i in range(20):
        path = root / f"class_{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(12 + i % 5, 10 + i % 7, 3, seed=i)).save(path)
    (root / ".hidden").write_text("no image")
    return root


@pytest.fixture
def square(tmp_path):
    root = tmp_path / "square"
    root.mkdir()
    for i in range(20):
        Image.fromarray(pixels(8, 8, 3, seed=i)).save(root / f"{i:02d}.png")
    return root


@pytest.fixture
def _streamed(monkeypatch):
    monkeypatch.setattr(image_set, "DECODE_LIMIT", 0)


def test_a_folder_of_one_size_is_read_as_it_is(square):
    source = data.load(f"folder:{square}")
    assert (source.train.shape, source.test.shape) == ((18, 8, 8, 3), (2, 8, 8, 3))
    every = {pixels(8, 8, 3, seed=i).tobytes() for i in range(20)}
    assert {x.tobytes() for x in (*source.train, *source.test)} == every
    assert source.steps == ()
    assert data.load(f"folder:{square}", 8).fingerprint == source.fingerprint
    smaller = data.load(f"folder:{square}", 4)
    np.testing.assert_array_equal(smaller.train, data.resize(source.train, 4))
    assert smaller.steps == ("to 4x4, zero border where smaller, block average where larger",)


def test_a_folder_with_both_splits(square):
    for name, files in (("train", range(15)), ("test", range(15, 20))):
        (square / name).mkdir()
        for i in files:
            (square / f"{i:02d}.png").rename(square / name / f"{i:02d}.png")
    source = data.load(f"folder:{square}")
    np.testing.assert_array_equal(source.train, [pixels(8, 8, 3, seed=i) for i in range(15)])
    np.testing.assert_array_equal(source.test, [pixels(8, 8, 3, seed=i) for i in range(15, 20)])


def test_grey_files_stay_grey_unless_one_has_colours(tmp_path):
    for i in range(4):
        Image.fromarray(pixels(5, 5, seed=i)).save(tmp_path / f"{i}.png")
    assert data.load(f"folder:{tmp_path}").image_shape == (5, 5, 1)
    Image.fromarray(pixels(5, 5, 3)).save(tmp_path / "colour.png")
    assert data.load(f"folder:{tmp_path}").image_shape == (5, 5, 3)


def test_crop_and_size_are_declared_and_exact(folder):
    source = data.load(f"folder:{folder}", 6, "centre:10")
    assert source.steps == ("centre 10x10", "6x6, triangle filter, antialiased")
    whole = data.load(f"folder:{folder}", 10, "centre:10")  # no filter: the middle pixels themselves
    middles = set()
    for i in range(20):
        x = pixels(12 + i % 5, 10 + i % 7, 3, seed=i)
        top, left = (x.shape[0] - 10) // 2, (x.shape[1] - 10) // 2
        middles.add(x[top : top + 10, left : left + 10].tobytes())
    assert {x.tobytes() for x in (*whole.train, *whole.test)} == middles
    assert source.fingerprint != whole.fingerprint


def test_the_boxes_of_the_papers():
    # CelebA, 178 x 218: Hat EBM's centre 178, CLEL's centre 140, VAEBM's box
    assert data.Geometry("centre:178", 64).box(178, 218) == (0, 20, 178, 198)
    assert data.Geometry("centre:140", 64).box(178, 218) == (19, 39, 159, 179)
    assert data.Geometry("box:15,40,163,188", 64).box(178, 218) == (15, 40, 163, 188)
    assert data.Geometry("centre", 64).box(300, 256) == (22, 0, 278, 256)
    # random: pixels of the resized image, from one edge to the other
    random = data.Geometry("random", 128)
    assert random.box(512, 256, (0, 0)) == (0, 0, 256, 256)
    assert random.box(512, 256, (2**32 - 1, 2**32 - 1)) == (256, 0, 512, 256)
    assert random.box(512, 256, (2**31, 7)) == (128, 0, 384, 256)
    assert random.box(512, 256) == (128, 0, 384, 256)


@pytest.mark.parametrize("crop", ["middle", "centre:", "centre:-3", "box:1,2,3", "box:0,0,4,5", "random:3", "centre:x"])
def test_crops_that_are_none(crop):
    with pytest.raises(data.DataError, match=f"crop '{crop}'"):
        data.Geometry(crop, 8)
    with pytest.raises(ConfigError, match=f"data.crop={crop}: "):
        DataConfig(crop=crop)


def test_a_configuration_names_a_source_that_there_is():
    with pytest.raises(ConfigError, match=r"data.source=tdfs:cifar10: no data source .* did you mean 'tfds:NAME"):
        DataConfig(source="tdfs:cifar10")
    with pytest.raises(ConfigError, match="workers=-1 is out of range"):
        DataConfig(workers=-1)


def test_broken_files_are_named(folder, square, tmp_path, capsys):
    def refused(root, words, *options):
        assert main(["data", "info", f"folder:{root}", *options]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert words in err
        assert err.startswith("jebm: ")

    refused(tmp_path / "none", "none: no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty: the folder is empty")
    refused(folder, "class_0/03.png: 15 x 13 pixels")
    refused(folder, "class_0/00.png: 12 x 10 pixels do not hold", "--crop", "centre:11", "--size", "8")
    refused(folder, "needs a size", "--crop", "centre")
    whole = (square / "07.png").read_bytes()
    (square / "07.png").write_bytes(whole[:-60])  # the header is whole, the pixels are not
    refused(square, "07.png: cannot be read as an image")
    (square / "07.png").write_bytes(whole)
    (square / "notes.txt").write_text("no image")
    refused(square, "notes.txt: not an image")
    (square / "notes.txt").unlink()
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 200).save(square / "deep.png")
    refused(square, "deep.png: pixels of mode I")
    (square / "deep.png").unlink()
    assert main(["data", "info", f"folder:{square}"]) == 0
    assert "18 to train, 2 held out; 8 x 8 x 3, uint8" in capsys.readouterr().out
    assert main(["data", "prepare", f"folder:{square}"]) == 2
    assert "needs no preparation" in capsys.readouterr().err


@pytest.mark.usefixtures("_streamed")
def test_what_is_read_ahead_is_what_an_array_would_give(square):
    source = data.load(f"folder:{square}")
    assert isinstance(source.train, data.ImageSet)
    array = np.asarray(source.train)
    assert (source.train.shape, source.train.dtype, len(source.train)) == (array.shape, array.dtype, 18)
    np.testing.assert_array_equal(source.train[2:5], array[2:5])
    np.testing.assert_array_equal(source.train[-1], array[-1])
    np.testing.assert_array_equal(source.train[np.array([3, 1])], array[[3, 1]])
    streamed, held = data.Loader(source.train, 5, seed=3), data.Loader(array, 5, seed=3)
    batches = [np.asarray(batch) for batch in streamed.batches(2, 9)]
    np.testing.assert_array_equal(batches, [held.batch(step) for step in range(2, 11)])
    assert isinstance(next(streamed.batches(0, 1)), jnp.ndarray)
    again = [np.asarray(batch) for n, start in ((4, 2), (5, 6)) for batch in streamed.batches(start, n)]
    np.testing.assert_array_equal(again, batches)
    assert list(streamed.batches(3, 0)) == []


@pytest.mark.usefixtures("_streamed")
def test_random_crops_are_a_function_of_seed_and_step(folder):
    train = data.load(f"folder:{folder}", 8, "random").train
    loader = data.Loader(train, 9, seed=5)
    first = [loader.batch(step) for step in range(4)]
    np.testing.assert_array_equal([np.asarray(b) for b in loader.batches(0, 4)], first)
    # the same image lies elsewhere in another epoch: the union of both epochs holds more than the images
    assert len({x.tobytes() for batch in first for x in batch}) > len(train)
    assert not np.array_equal(crop_words(5, 0, 9), crop_words(5, 1, 9))
    words = crop_words(0, 0, 4000) / 2**32
    assert abs(words.mean() - 0.5) < 5 * np.sqrt(1 / 12 / words.size)
    assert crop_words(5, 7, 2).tolist() == GOLDEN_WORDS


# these must never change, or checkpoints would go on with other data
GOLDEN_WORDS = [[117539514, 3836633960], [3524630798, 1440118830]]


def test_hosts_read_their_rows_of_one_batch(square):
    images = np.asarray(data.load(f"folder:{square}").train)
    whole = data.Loader(images, 6, seed=2).batch(4)
    parts = [data.Loader(images, 6, seed=2, rows=np.array(rows)).batch(4) for rows in ([0, 1, 2], [3, 4, 5])]
    np.testing.assert_array_equal(parts[0][:3], whole[:3])
    np.testing.assert_array_equal(parts[0] + parts[1], whole)
    assert not parts[0][3:].any()


def test_a_host_decodes_no_other_rows(square):
    read = []

    @dataclasses.dataclass
    class Counting:
        def __len__(self):
            return 12

        def read(self, index):
            read.append(index)
            return np.full((2, 2, 1), index, np.uint8)

        def where(self, index):
            return str(index)

        def identity(self):
            return ""

    images = data.ImageSet(Counting(), data.Geometry(), (2, 2, 1), np.arange(12))
    batch = data.Loader(images, 6, rows=np.array([1, 4])).batch(0)
    order = data.batch_indices(0, 0, 12, 6)
    assert read == order[[1, 4]].tolist()
    assert batch[:, 0, 0, 0].tolist() == [0, order[1], 0, 0, order[4], 0]


@pytest.mark.usefixtures("_streamed")
def test_a_file_that_breaks_in_training_is_named(square):
    train = data.load(f"folder:{square}").train
    (square / "04.png").write_bytes(b"torn")
    with pytest.raises(data.DataError, match=r"04.png: cannot be read as an image") as caught:
        list(data.Loader(train, 9).batches(0, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("_streamed")
def test_worker_processes_change_nothing(folder):
    train = data.load(f"folder:{folder}", 8, "random").train
    one, two, three = (
        [np.asarray(batch) for batch in data.Loader(train, 4, seed=1, workers=workers).batches(3, 7)]
        for workers in (0, 1, 3)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)
    (folder / "class_1" / "04.png").write_bytes(b"torn")
    with pytest.raises(data.DataError, match=r"04.png: cannot be read as an image") as caught:
        list(data.Loader(train, 9, workers=1).batches(0, 2))
    assert "\n" not in str(caught.value)


def test_import_loads_no_reader():
    code = (
        "import sys, jebm, jebm.data, jebm.config; jebm.config.DataConfig(source='tfds:cifar10');"
        "print([m for m in ('grain', 'tensorflow', 'tensorflow_datasets', 'PIL', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
