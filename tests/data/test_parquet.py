"""``hf:NAME``: parquet files that are here, in the forms that the Hugging Face hub has."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from jebm import data

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 4


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path, rows, image="image", label="label", form="struct", pixels=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [png(pixels[i]) for i in rows]
    column = [{"bytes": b, "path": None} for b in encoded] if form == "struct" else encoded
    columns = {image: column} | ({label: LABELS[rows]} if label else {})
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_a_folder_of_parquet_files(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.parquet", range(5))
    write(tmp_path / "data/train-00001-of-00002.parquet", range(5, 9))
    write(tmp_path / "data/test-00000-of-00001.parquet", range(9, 12))
    source = data.load(f"hf:{tmp_path}")
    np.testing.assert_array_equal(source.train, PIXELS[:9])
    np.testing.assert_array_equal(source.test, PIXELS[9:])
    np.testing.assert_array_equal(source.train_labels, LABELS[:9])
    assert source.num_classes == 4
    assert data.load(f"hf:{tmp_path}").fingerprint == source.fingerprint


@pytest.mark.parametrize(("image", "label", "form"), [("img", "fine_label", "struct"), ("image", None, "bytes")])
def test_other_columns(image, label, form, tmp_path):
    write(tmp_path / "train.parquet", range(8), image, label, form)
    write(tmp_path / "validation.parquet", range(8, 12), image, label, form)
    source = data.load(f"hf:{tmp_path}")
    np.testing.assert_array_equal(source.test, PIXELS[8:])
    assert source.num_classes == (4 if label else None)


def test_one_split_is_divided_by_a_permutation(tmp_path):
    write(tmp_path / "train.parquet", range(12))
    source = data.load(f"hf:{tmp_path}")
    order = data.permutation(0, 0, 12)
    np.testing.assert_array_equal(source.train, PIXELS[order[:11]])
    np.testing.assert_array_equal(source.test_labels, LABELS[order[11:]])


def test_a_crop_and_a_size(tmp_path):
    write(tmp_path / "train.parquet", range(12))
    assert data.load(f"hf:{tmp_path}", 4, "centre:4").image_shape == (4, 4, 3)
    grey = data.load(f"hf:{tmp_path}", 3, "centre")
    assert grey.image_shape == (3, 3, 3)


def test_a_set_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    base = tmp_path / "datasets--ylecun--mnist"
    with pytest.raises(data.DataError, match="hf download --repo-type dataset ylecun/mnist"):
        data.load("hf:ylecun/mnist")
    for commit, rows in (("old", range(4, 8)), ("new", range(8))):
        write(base / f"snapshots/{commit}/mnist/train-0.parquet", rows)
        write(base / f"snapshots/{commit}/mnist/test-0.parquet", range(8, 12))
    (base / "refs").mkdir()
    (base / "refs/main").write_text("new")
    for name in ("hf:ylecun/mnist", "hf:ylecun/mnist/mnist"):
        np.testing.assert_array_equal(data.load(name).train, PIXELS[:8])


def test_a_reader_travels_without_its_images(tmp_path):
    from jebm.data.parquet import ParquetReader

    write(tmp_path / "train.parquet", range(12))
    reader = ParquetReader((tmp_path / "train.parquet",), "image", 12)
    first = reader.read(0)
    travelled = pickle.loads(pickle.dumps(reader))
    assert "values" not in travelled.__dict__
    assert travelled.read(0) == first


def two_sets(folder):
    for name in ("a", "b"):
        write(folder / name / "train.parquet", range(4))


def no_image(folder):
    parquet.write_table(pyarrow.table({"text": ["a"]}), folder / "train.parquet")


def no_bytes(folder):
    parquet.write_table(pyarrow.table({"image": ["a", "b"]}), folder / "train.parquet")


def no_picture(folder):
    parquet.write_table(pyarrow.table({"image": [b"abc", b"d"]}), folder / "train.parquet")


WRONG = {
    "no .parquet files": lambda folder: None,
    "cannot be read as parquet": lambda folder: (folder / "train.parquet").write_bytes(b"abc"),
    "several sets, in a, b": two_sets,
    "no column 'image' or 'img'; there are text": no_image,
    "no bytes of an image, but str": no_bytes,
    "not an image of 8 bits per channel": no_picture,
    "no file begins with 'train'": lambda folder: write(folder / "test.parquet", range(3)),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_read_is_one_line(words, tmp_path):
    WRONG[words](tmp_path)
    with pytest.raises(data.DataError, match=words) as error:
        data.load(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)
