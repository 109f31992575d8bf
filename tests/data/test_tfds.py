"""Sets of TensorFlow Datasets: written in ArrayRecord form and read, both without TensorFlow."""

import hashlib
import io
import pickle
import shutil
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from jebm import data, files
from jebm.commands.main import main
from jebm.data import image_set
from jebm.data.prepare import archives as prepare
from jebm.data.prepare.catalogue import CATALOGUE
from jebm.data.prepare.originals import READERS


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    """An empty data directory, and in it the place for originals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        prepare.manual_directory().mkdir(parents=True)
        yield prepare.manual_directory()


def pack(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def encoded(seed, *shape, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def records(num, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (num, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(num) % 10
    return rows


@pytest.fixture(scope="module")
def cifar10(manual):
    """A small CIFAR-10 of the original layout, prepared by the command."""
    parts = {"data_batch_1": (13, 0), "data_batch_2": (10, 1), "test_batch": (7, 2)}
    files = {f"cifar-10-batches-bin/{name}.bin": records(*part).tobytes() for name, part in parts.items()}
    pack(manual / "cifar-10-binary.tar.gz", files)
    assert main(["data", "prepare", "tfds:cifar10"]) == 0
    return manual.parents[1] / "cifar10"


def test_prepared_and_read_without_tensorflow(cifar10):
    source = data.load("tfds:cifar10")
    assert "tensorflow" not in sys.modules
    rows = np.concatenate([records(13, 0), records(10, 1)])
    np.testing.assert_array_equal(source.train, rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(source.train_labels, rows[:, 0])
    assert (len(source.test), source.num_classes, source.steps, source.name) == (7, 10, (), "cifar10")
    assert [path.name for path in cifar10.iterdir()] == ["3.0.2"]  # nothing half-written beside it


def test_splits_by_expression(cifar10):
    whole = data.load("tfds:cifar10")
    part = data.load("tfds:cifar10:train[:50%]")
    np.testing.assert_array_equal(part.train, whole.train[: len(part.train)])
    np.testing.assert_array_equal(part.test, whole.test)
    assert len(part.train) in (11, 12)
    both = data.load("tfds:cifar10:train+test")  # what is left to hold out is a tenth of it
    assert (len(both.train), len(both.test)) == (27, 3)
    assert len({source.fingerprint for source in (whole, part, both)}) == 3
    for split in ("valid", "train[50%"):
        assert main(["data", "info", f"tfds:cifar10:{split}"]) == 2
    assert data.load("tfds:cifar10", 16).train.shape == (23, 16, 16, 3)


def test_streamed_batches_are_those_of_the_array(cifar10, monkeypatch):
    held = data.load("tfds:cifar10").train
    monkeypatch.setattr(image_set, "DECODE_LIMIT", 0)
    streamed = data.load("tfds:cifar10").train
    batches = [np.asarray(batch) for batch in data.Loader(streamed, 5, seed=3).batches(3, 4)]
    np.testing.assert_array_equal(batches, [data.Loader(held, 5, seed=3).batch(step) for step in range(3, 7)])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(streamed)).read(4), held[4])  # to worker processes


def test_a_prepared_set_that_broke(cifar10, tmp_path, monkeypatch, capsys):
    def refused(source, words):
        assert main(["data", "info", source]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert words in err

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    shutil.copytree(cifar10, tmp_path / "cifar10")
    version = tmp_path / "cifar10" / "3.0.2"
    (path,) = version.glob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:5000])
    refused("tfds:cifar10", "3.0.2: cannot read")
    (version / "features.json").write_text("{")
    refused("tfds:cifar10", "3.0.2: cannot read its description")
    refused("tfds:../etc", "no name of a data set")
    assert main(["data", "info", "tfds:celeb_a"]) == 0
    out = capsys.readouterr().out
    assert "bring by hand: " in out
    assert "img_align_celeba.zip" in out
    with pytest.raises(data.DataError, match=r"celeb_a is not prepared in .*: run 'jebm data prepare tfds:celeb_a'"):
        data.load("tfds:celeb_a")
    for name, words in (("celeb_a", "img_align_celeba.zip, list_eval"), ("emnist", "pip install tensorflow")):
        assert main(["data", "prepare", f"tfds:{name}"]) == 2
        assert words in capsys.readouterr().err


def test_originals_that_are_broken_leave_nothing(manual, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    place = prepare.manual_directory()
    place.mkdir(parents=True)
    rows = records(3, 0)
    rows[2, 0] = 11
    broken = [
        (b"no archive", "broken, or another file than expected"),
        ({"cifar-10-batches-bin/data_batch_1.bin": records(3, 0).tobytes()[:-5]}, "no whole number of records"),
        ({"cifar-10-batches-bin/data_batch_1.bin": rows.tobytes()}, "has a label of 11"),
        ({"cifar-10-batches-bin/data_batch_1.bin": records(3, 0).tobytes()}, "holds no file test_batch"),
    ]
    for content, words in broken:
        archive = place / "cifar-10-binary.tar.gz"
        archive.write_bytes(content) if isinstance(content, bytes) else pack(archive, content)
        with pytest.raises(data.DataError, match=words) as caught:
            prepare.prepare("tfds:cifar10", say=lambda line: None)
        assert "cifar-10-binary.tar.gz" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "cifar10").glob("*"))


def test_faces_from_files_brought_by_hand(manual):
    faces = {f"{i:06d}.jpg": encoded(i, 218, 178, 3, kind="JPEG") for i in range(1, 6)}
    with zipfile.ZipFile(manual / "img_align_celeba.zip", "w") as archive:
        for name, content in faces.items():
            archive.writestr(f"img_align_celeba/{name}", content)
    split = [0, 0, 1, 0, 2]
    (manual / "list_eval_partition.txt").write_text(
        "".join(f"{name} {number}\n" for name, number in zip(faces, split, strict=True))
    )
    assert main(["data", "prepare", "tfds:celeb_a"]) == 0
    source = data.load("tfds:celeb_a")
    assert source.steps == ("centre 178x178", "64x64, triangle filter, antialiased")
    assert (source.train.shape, source.test.shape) == ((3, 64, 64, 3), (1, 64, 64, 3))
    square = Image.open(io.BytesIO(faces["000001.jpg"])).crop((0, 20, 178, 198))
    np.testing.assert_array_equal(source.train[0], square.resize((64, 64), Image.Resampling.BILINEAR))
    assert data.load("tfds:celeb_a", 32, "centre:140").steps[0] == "centre 140x140"


def test_layouts_of_the_other_originals(tmp_path):
    """What each reader yields, against images laid out by hand."""
    from scipy.io import savemat

    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def same(examples, images, labels):
        found = list(examples)
        for (content, _), image in zip(found, images, strict=True):
            np.testing.assert_array_equal(Image.open(io.BytesIO(content)), image)
        assert [label for _, label in found] == labels

    mat = tmp_path / "train_32x32.mat"
    savemat(mat, {"X": x.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9], [2]], np.uint8)})
    same(READERS["svhn_cropped"]([mat, mat]).splits["test"](), x, [0, 1, 9, 2])

    labels = np.array([[7, 99], [1, 3], [0, 0], [4, 5]], np.uint8)
    content = np.concatenate([labels, x.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
    pack(tmp_path / "cifar-100.tar.gz", {"c/train.bin": content.tobytes()})
    same(READERS["cifar100"]([tmp_path / "cifar-100.tar.gz"]).splits["train"](), x, [99, 3, 0, 5])

    big = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    columns = big.transpose(0, 3, 2, 1).tobytes()  # channel, column, row
    files = {"s/unlabeled_X.bin": columns, "s/test_X.bin": columns, "s/test_y.bin": bytes([10, 1])}
    pack(tmp_path / "stl10.tar.gz", files)
    stl10 = READERS["stl10"]([tmp_path / "stl10.tar.gz"])
    same(stl10.splits["unlabelled"](), big, [-1, -1])
    same(stl10.splits["test"](), big, [9, 0])

    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        file = io.BytesIO()
        np.savez(file, data=x.transpose(0, 3, 1, 2).reshape(4, -1), labels=np.array([1, 1000, 5, 6]))
        archive.writestr("train_data_batch_1.npz", file.getvalue())
    same(READERS["imagenet_resized/32x32"]([tmp_path / "train.zip"] * 2).splits["train"](), x, [0, 999, 4, 5])

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        member = tarfile.TarInfo("n01_1.JPEG")
        member.size = len(encoded(3, 9, 7, 3))
        archive.addfile(member, io.BytesIO(encoded(3, 9, 7, 3)))
    pack(tmp_path / "train.tar", {"n01.tar": inner.getvalue()})
    pack(tmp_path / "val.tar", {"val_1.JPEG": encoded(4, 5, 5, 3)})
    imagenet = READERS["imagenet2012"]([tmp_path / "train.tar", tmp_path / "val.tar"])
    assert list(imagenet.splits["train"]()) == [(encoded(3, 9, 7, 3), -1)]
    assert list(imagenet.splits["validation"]()) == [(encoded(4, 5, 5, 3), -1)]

    textures = {f"dtd/images/{name}": encoded(i, 6, 8, 3) for i, name in enumerate(("b/b_2.jpg", "a/a_1.jpg"))}
    pack(tmp_path / "dtd.tar.gz", textures | {"dtd/labels/val1.txt": b"a/a_1.jpg\nb/b_2.jpg\n"})
    dtd = READERS["dtd"]([tmp_path / "dtd.tar.gz"])
    assert list(dtd.splits["validation"]()) == [(encoded(1, 6, 8, 3), 0), (encoded(0, 6, 8, 3), 1)]


def test_every_set_of_the_catalogue_can_be_written():
    assert set(CATALOGUE) == set(READERS)
    for name, entry in CATALOGUE.items():
        assert entry.version, name
        assert entry.downloads or entry.by_hand, name
        data.Geometry(entry.crop, entry.size)


def test_a_download_of_another_content_leaves_nothing(tmp_path):
    (tmp_path / "there").write_bytes(b"some bytes")
    url = (tmp_path / "there").as_uri()
    with pytest.raises(data.DataError, match="its SHA-256 is"):
        files.download(url, tmp_path / "new" / "file", "0" * 64)
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(data.DataError, match="cannot be downloaded .* bring it by hand"):
        files.download(url + "-not", tmp_path / "new" / "file", "0" * 64)
    files.download(url, tmp_path / "new" / "file", hashlib.sha256(b"some bytes").hexdigest())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
