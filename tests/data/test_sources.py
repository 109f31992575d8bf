"""Sources, preprocessing and the order of batches."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import data


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def real(name: str) -> str:
    directory = os.environ.get("JEBM_DATA")
    if not directory or not (pathlib.Path(directory) / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz (environment variable JEBM_DATA names the directory of image sets)")
    return f"npz:{directory}/{name}.npz"


# sources


def test_digits_are_complete_and_split_once():
    from sklearn.datasets import load_digits

    source = data.load("digits")
    assert source.train.shape == (1500, 8, 8, 1)
    assert source.test.shape == (297, 8, 8, 1)
    assert source.train.dtype == source.test.dtype == np.uint8
    assert (source.num_classes, source.image_shape) == (10, (8, 8, 1))
    # the 17 grey levels, k * 255 / 16 to the nearest integer (8 halfway, up)
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.unique(source.train).tolist() == levels
    # together the two splits are the set, each image with its label
    original = load_digits()
    rows = lambda x, y: sorted(  # noqa: E731
        bytes(image) + bytes([label]) for image, label in zip(x.astype(np.uint8), y, strict=True)
    )
    ours = np.concatenate([source.train, source.test]).reshape(-1, 64)
    labels = np.concatenate([source.train_labels, source.test_labels])
    assert rows(np.searchsorted(levels, ours), labels) == rows(original.data, original.target)


def test_the_digits_split_never_changes():
    source = data.load("digits")
    assert source.fingerprint == "88e3a1711bb965c7"
    assert source.test_labels[:10].tolist() == [6, 8, 0, 9, 7, 2, 1, 1, 8, 7]


def test_npz_with_both_splits(tmp_path):
    x_train, x_test = images(7, 5, 6, 3), images(3, 5, 6, 3, seed=1)
    np.savez(tmp_path / "set.npz", x_train=x_train, x_test=x_test, y_train=np.arange(7), y_test=[4, 0, 9])
    source = data.load(f"npz:{tmp_path}/set.npz")
    np.testing.assert_array_equal(source.train, x_train)
    np.testing.assert_array_equal(source.test, x_test)
    assert (source.name, source.num_classes) == ("set", 10)
    assert source.test_labels.tolist() == [4, 0, 9]
    x_test[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "set.npz", x_train=x_train, x_test=x_test, y_train=np.arange(7), y_test=[4, 0, 9])
    assert data.load(f"npz:{tmp_path}/set.npz").fingerprint != source.fingerprint


def test_npz_of_one_array_is_split_nine_to_one(tmp_path):
    x = images(40, 4, 4)
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(40))
    source = data.load(f"npz:{tmp_path}/set.npz")
    assert source.train.shape == (36, 4, 4, 1)
    assert source.test.shape == (4, 4, 4, 1)
    # labels are the original positions
    np.testing.assert_array_equal(x[source.train_labels], source.train[..., 0])
    np.testing.assert_array_equal(x[source.test_labels], source.test[..., 0])
    assert sorted([*source.train_labels, *source.test_labels]) == list(range(40))
    assert source.train_labels.tolist() != sorted(source.train_labels)


def test_a_folder_of_shards_is_one_set(tmp_path):
    x, y = images(10, 4, 4), np.arange(10)
    whole, shards = tmp_path / "set.npz", tmp_path / "shards"
    shards.mkdir()
    np.savez(whole, x_train=x[:8], x_test=x[8:], y_train=y[:8], y_test=y[8:])
    for name, train, test in (("b", slice(3, 8), slice(9, 10)), ("a", slice(0, 3), slice(8, 9))):
        np.savez(shards / f"{name}.npz", x_train=x[train], x_test=x[test], y_train=y[train], y_test=y[test])
    one, many = data.load(f"npz:{whole}"), data.load(f"npz:{shards}")
    for name in ("train", "test", "train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    np.savez(shards / "c.npz", x_train=x, x_test=x)
    with pytest.raises(data.DataError, match=r"c.npz: holds .* shards must be alike"):
        data.load(f"npz:{shards}")
    np.savez(shards / "c.npz", x_train=images(2, 5, 5), x_test=x[:1], y_train=y[:2], y_test=y[:1])
    with pytest.raises(data.DataError, match="c.npz: 'x_t.*' is uint8 .*, unlike that of a.npz"):
        data.load(f"npz:{shards}")
    (tmp_path / "none").mkdir()
    with pytest.raises(data.DataError, match="none: no .npz in this folder"):
        data.load(f"npz:{tmp_path}/none")


def test_an_empty_label_array_means_no_labels(tmp_path):
    np.savez(tmp_path / "set.npz", x=images(5, 4, 4), y=np.zeros(0, np.uint8))
    source = data.load(f"npz:{tmp_path}/set.npz")
    assert source.train_labels is source.num_classes is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no image array"),
        ({"x_train": images(4, 3, 3)}, "'x_train' but no 'x_test'"),
        ({"x": images(4, 3, 3).astype(np.int32)}, "'x' is int32; images must be uint8"),
        ({"x": np.ones((4, 3, 3), np.float32)}, "'x' is float32; images must be uint8"),
        ({"x": np.full((4, 3, 3), np.nan)}, "'x' is float64 with 36 values that are NaN"),
        ({"x": images(0, 3, 3)}, "'x' is empty"),
        ({"x": images(1, 3, 3)}, "'x' holds one image"),
        ({"x": images(4, 3, 3, 2)}, "C = 1 or 3"),
        ({"x": images(4, 3)}, r"shape \(4, 3\)"),
        ({"x": images(4, 3, 3), "y": np.arange(3)}, "one for each of the 4 images"),
        ({"x": images(4, 3, 3), "y": np.ones(4)}, "labels must be integers"),
        ({"x": images(4, 3, 3), "y": np.array([0, 1, -1, 2])}, "from -1 to 2"),
        ({"x_train": images(4, 3, 3), "x_test": images(4, 3, 4)}, "make them equal"),
        ({"x_train": images(4, 3, 3), "x_test": images(2, 3, 3), "y_test": [0, 1]}, "'y_test' alone"),
        ({"x": np.array([{"an": "object"}] * 4)}, "cannot read 'x'"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(data.DataError, match=words) as caught:
        data.load(f"npz:{tmp_path}/bad.npz")
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(data.DataError, match="none.npz: no such file"):
        data.load(f"npz:{tmp_path}/none.npz")
    np.savez(tmp_path / "set.npz", x=images(50, 8, 8))
    whole = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match="torn.npz: cannot read the archive"):
        data.load(f"npz:{tmp_path}/torn.npz")
    (tmp_path / "flipped.npz").write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(data.DataError, match="flipped.npz: cannot read 'x'"):
        data.load(f"npz:{tmp_path}/flipped.npz")
    np.save(tmp_path / "bare.npy", images(5, 8, 8))
    with pytest.raises(data.DataError, match="bare array"):
        data.load(f"npz:{tmp_path}/bare.npy")
    directory = whole.index(b"PK\x01\x02") + 8  # the flags of the first file: it is encrypted
    (tmp_path / "locked.npz").write_bytes(whole[:directory] + bytes([whole[directory] | 1]) + whole[directory + 1 :])
    with pytest.raises(data.DataError, match="locked.npz: cannot read 'x'"):
        data.load(f"npz:{tmp_path}/locked.npz")
    (tmp_path / "text.npz").write_text("x = 1")
    with pytest.raises(data.DataError, match="text.npz: cannot read"):
        data.load(f"npz:{tmp_path}/text.npz")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "mean 'digits'"),
        ("npz", "mean 'npz:PATH'"),
        ("a/b.npz", "mean 'npz:a/b.npz'"),
        ("xyz", r"there are digits, npz:PATH, folder:PATH, hf:NAME, tfds:NAME\[:SPLIT\], points:NAME"),
    ],
)
def test_unknown_sources(name, hint):
    with pytest.raises(data.DataError, match=hint):
        data.load(name)


@pytest.mark.parametrize(
    ("name", "shape", "num_test"),
    [
        ("mnist", (28, 28, 1), 10_000),
        ("fashion_mnist", (28, 28, 1), 10_000),
        ("cifar10", (32, 32, 3), 10_000),
    ],
)
def test_real_sets(name, shape, num_test):
    source = data.load(real(name))
    assert (source.name, source.image_shape, len(source.test), source.num_classes) == (
        name,
        shape,
        num_test,
        10,
    )
    assert data.resize_source(source, 32).image_shape == (32, 32, shape[2])


# preprocessing


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_to_float_is_exact_at_the_ends_and_undone(transform):
    levels = np.arange(256, dtype=np.uint8)
    x = transform(data.to_float)(levels)
    assert x.dtype == jnp.float32
    assert (x[0], x[255]) == (-1.0, 1.0)
    np.testing.assert_allclose(np.asarray(x, float), 2 * levels.astype(float) / 255 - 1, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(transform(data.to_uint8)(x), levels)


def test_to_uint8_clips_and_rounds():
    step = 2 / 255
    x = jnp.array([-7.0, -1.0 + 0.4 * step, -1.0 + 0.6 * step, 1.0 - 0.6 * step, 1.0001, 5.0])
    assert data.to_uint8(x).tolist() == [0, 0, 1, 254, 255, 255]


def test_padding_is_centred_zeros():
    x = 1 + images(2, 5, 4, 3) // 2
    y = data.resize(x, 8)
    assert y.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(y[:, 1:6, 2:6], x)
    assert y.sum(dtype=int) == x.sum(dtype=int)


def test_block_average_rounds_half_up():
    x = np.array([[[1, 2, 9, 9], [2, 1, 9, 8], [0, 0, 3, 3], [0, 1, 4, 4]]], np.uint8)[..., None]
    # means 1.5, 8.75, 0.25, 3.5
    assert data.resize(x, 2)[0, :, :, 0].tolist() == [[2, 9], [0, 4]]
    assert data.resize(np.full((1, 32, 32, 3), 255, np.uint8), 8).min() == 255


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 32, 24, 1)])
def test_sizes_out_of_reach(shape):
    with pytest.raises(data.DataError, match=f"image_size is 16 but the images are {shape[1]} x {shape[2]}"):
        data.resize(images(*shape), 16)


def test_resize_source_declares_the_step():
    source = data.load("digits")
    larger, smaller = data.resize_source(source, 12), data.resize_source(source, 4)
    assert larger.steps == ("8x8 to 12x12, zero border",)
    assert smaller.steps == ("8x8 to 4x4, block average",)
    assert len({source.fingerprint, larger.fingerprint, smaller.fingerprint}) == 3
    assert larger.test.shape == (297, 12, 12, 1)
    assert data.resize_source(source, 8) is data.resize_source(source, None) is source


def test_flip_mirrors_about_half_the_images(key):
    x = images(4000, 2, 3, 1)
    plain = np.asarray(data.preprocess(key, x))
    np.testing.assert_array_equal(plain, data.to_float(x))
    y = np.asarray(jax.jit(lambda k, x: data.preprocess(k, x, horizontal_flip=True))(key, x))
    same = (y == plain).all((1, 2, 3))
    mirrored = (y == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_dequantization_spreads_each_level_over_its_cell(key):
    x = np.repeat(np.array([0, 100, 255], np.uint8), 20_000).reshape(-1, 2, 2, 1)
    y = np.asarray(jax.jit(lambda k, x: data.preprocess(k, x, dequantize=True))(key, x))
    assert y.dtype == np.float32
    cells = (y.astype(float) + 1) * 128
    np.testing.assert_array_equal(np.floor(cells), x)
    u = cells - x
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / u.size)


def test_dequantized_images_stay_below_one(key):
    x = np.full((300, 32, 32, 3), 255, np.uint8)  # so many that 255 + u does round up to 256 somewhere
    assert data.preprocess(key, x, dequantize=True).max() < 1


# the loader


def test_an_epoch_visits_every_example_once():
    steps = data.steps_per_epoch(23, 5)
    assert steps == 4
    first = np.concatenate([data.batch_indices(3, step, 23, 5) for step in range(4)])
    second = np.concatenate([data.batch_indices(3, step, 23, 5) for step in range(4, 8)])
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == 20
        assert set(epoch.tolist()) <= set(range(23))
    assert first.tolist() != second.tolist()


def test_the_order_is_a_function_of_seed_and_step():
    # golden: these orders must never change, or checkpoints would go on with other data
    assert data.permutation(0, 3, 10).tolist() == [5, 4, 6, 7, 9, 0, 1, 2, 3, 8]
    assert data.permutation(3, 0, 10).tolist() == [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]
    assert data.batch_indices(3, 2, 10, 3).tolist() == [9, 4, 3]
    assert data.batch_indices(0, 9, 10, 3).tolist() == [5, 4, 6]


def test_orders_are_uniform():
    # where example 0 lands in 6,000 orders of 6: chi-square with 5 degrees of freedom, 1e-6 quantile 35.9
    positions = [int(np.flatnonzero(data.permutation(7, epoch, 6) == 0)[0]) for epoch in range(6000)]
    counts = np.bincount(positions, minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 35.9


def test_batches_go_on_where_they_stopped():
    loader = data.Loader(images(23, 2, 2, 1), 5, seed=11)
    whole = [np.asarray(batch) for batch in loader.batches(0, 9)]
    again = [np.asarray(batch) for n, start in ((4, 0), (5, 4)) for batch in loader.batches(start, n)]
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(whole, [loader.batch(step) for step in range(9)])
    assert len({batch.tobytes() for batch in whole}) == 9
    assert isinstance(next(loader.batches(0, 1)), jax.Array)
    assert list(loader.batches(3, 0)) == []


def test_one_batch_is_sent_ahead():
    sent = []
    loader = data.Loader(images(23, 2, 2, 1), 5)
    batches = loader.batches(0, 3, place=lambda batch: sent.append(1) or jnp.asarray(batch))
    seen = [(next(batches), len(sent))[1] for _ in range(3)]
    assert seen == [2, 3, 3]


def test_batches_over_a_mesh():
    from jebm.sharding import make_mesh, shard_batch

    mesh = make_mesh(2)
    loader = data.Loader(images(23, 2, 2, 1), 6)
    (batch,) = loader.batches(2, 1, place=lambda batch: shard_batch(batch, mesh))
    assert len(batch.sharding.device_set) == 2
    np.testing.assert_array_equal(batch, loader.batch(2))


def test_loader_refusals():
    for batch_size in (0, 24):
        with pytest.raises(ValueError, match=f"a batch of {batch_size} from 23 examples"):
            data.Loader(images(23, 2, 2, 1), batch_size)
    with pytest.raises(ValueError, match="steps count from 0"):
        data.Loader(images(23, 2, 2, 1), 5).batch(-1)
    with pytest.raises(ValueError, match="the seed of a data order is -1"):
        data.Loader(images(23, 2, 2, 1), 5, seed=-1).batch(0)
