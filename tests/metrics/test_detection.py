"""AUROC against its definition and the normal law; the outlier sets."""

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from jebm.metrics.detection import aupr, auroc, auroc_interval, bootstrap_interval, fpr95, write_scores
from jebm.metrics.outlier_sets import (
    channel_statistics,
    compressed_size,
    match_resolutions,
    outliers,
    resize_antialiased,
)


@pytest.mark.parametrize("seed", range(5))
def test_by_the_definition_with_ties(seed):
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, 6, 31).astype(float), random.integers(1, 8, 17).astype(float)
    higher = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    assert auroc(inside, outside) == pytest.approx(higher, rel=1e-14)
    assert auroc(outside, inside) == pytest.approx(1 - higher, rel=1e-14)


def test_the_ends_of_the_scale():
    inside = np.arange(6.0)
    assert auroc(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])) == (1 + 0.5 + 3) / 6
    assert auroc(inside, np.full(5, 9.0)) == 1.0
    assert auroc(inside, np.full(5, -1.0)) == 0.0
    assert auroc(np.ones(4), np.ones(3)) == 0.5


def test_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(1)
    inside, outside = random.normal(0, 1, 300), random.normal(0.4, 2, 200)
    expected = roc_auc_score([0] * 300 + [1] * 200, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, rel=1e-13)


def test_precision_and_false_positives_against_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_curve

    random = np.random.default_rng(6)
    for inside, outside in (
        (random.normal(0, 1, 300), random.normal(0.4, 2, 200)),
        (random.integers(0, 9, 300).astype(float), random.integers(3, 12, 90).astype(float)),  # with ties
    ):
        labels, scores = [0] * len(inside) + [1] * len(outside), np.concatenate([inside, outside])
        assert aupr(inside, outside) == pytest.approx(average_precision_score(labels, scores), rel=1e-12)
        false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert fpr95(inside, outside) == pytest.approx(false[np.argmax(true >= 0.95)], rel=1e-12)
    assert (aupr(inside, outside + 99), fpr95(inside, outside + 99)) == (1.0, 0.0)
    assert (aupr(np.ones(4), np.ones(12)), fpr95(np.ones(4), np.ones(12))) == (0.75, 1.0)


def test_false_positives_of_two_normal_laws():
    # the threshold that 95 % of N(d, 1) pass is d - 1.645
    n, random = 20_000, np.random.default_rng(7)
    threshold = 2.0 - norm.ppf(0.95)
    expected, slope = norm.sf(threshold), norm.pdf(threshold)
    value = fpr95(random.normal(0, 1, n), random.normal(2.0, 1, n))
    # that of the share above the threshold, and of the threshold, the 5 % quantile of the outliers
    deviation = np.sqrt(expected * (1 - expected) / n + slope**2 * 0.05 * 0.95 / n / norm.pdf(norm.ppf(0.05)) ** 2)
    assert abs(value - expected) < 5 * deviation


def test_intervals_of_false_positives_cover_as_often_as_they_say():
    random, expected = np.random.default_rng(12), norm.sf(2.0 - norm.ppf(0.95))
    hits = 0
    for seed in range(60):
        inside, outside = random.normal(0, 1, 200), random.normal(2.0, 1, 200)
        low, high = bootstrap_interval(fpr95, inside, outside, level=0.8, num_resamples=60, seed=seed)
        hits += low <= expected <= high
    assert 30 <= hits <= 59  # 48 expected, standard deviation 3.1; the interval of a quantile is rough


def test_scores_as_openood_has_them(tmp_path):
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(8)
    inside, outside = random.normal(0, 1, 30), random.normal(1, 1, 20)
    path = write_scores(tmp_path / "new", "svhn", inside, outside)
    assert path == tmp_path / "new/svhn.npz"
    with np.load(path) as file:
        assert sorted(file.files) == ["conf", "label", "pred"]
        assert file["pred"].shape == file["conf"].shape == file["label"].shape == (50,)
        # its evaluator: outliers have the label -1 and are positive, the score is the confidence's negative
        value = roc_auc_score(file["label"] == -1, -file["conf"])
    assert value == pytest.approx(auroc(inside, outside), rel=1e-13)


@pytest.mark.parametrize("d", [-0.5, 0.0, 0.8, 2.0])
def test_two_normal_laws(d):
    n, random = 20_000, np.random.default_rng(2)
    value = auroc(random.normal(0, 1, n), random.normal(d, 1, n))
    # Var <= A (1 - A) / n for two samples of n (the binomial bound, over two halves)
    expected = norm.cdf(d / np.sqrt(2))
    assert abs(value - expected) < 5 * np.sqrt(expected * (1 - expected) / n)


def test_the_interval_covers_as_often_as_it_says():
    random, expected = np.random.default_rng(3), norm.cdf(1 / np.sqrt(2))
    hits, widths = 0, []
    for seed in range(200):
        inside, outside = random.normal(0, 1, 60), random.normal(1, 1, 40)
        low, high = auroc_interval(inside, outside, level=0.8, num_resamples=100, seed=seed)
        hits += low <= expected <= high
        widths.append(high - low)
    # 160 of 200 expected, standard deviation 5.7; the percentile interval is a little short at this size
    assert 130 <= hits <= 183
    assert 0.05 < np.mean(widths) < 0.2


def test_the_interval_is_seeded():
    random = np.random.default_rng(4)
    inside, outside = random.normal(0, 1, 50), random.normal(1, 1, 50)
    once = auroc_interval(inside, outside, num_resamples=50)
    assert once == auroc_interval(inside, outside, num_resamples=50)
    assert once != auroc_interval(inside, outside, num_resamples=50, seed=1)
    assert once[0] < auroc(inside, outside) < once[1]


def test_scores_without_a_rank():
    good = np.arange(4.0)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="out_scores: 1 of 2 are NaN or infinite"):
            auroc(good, np.array([0.0, bad]))
        with pytest.raises(ValueError, match="in_scores: 1 of 2 are NaN or infinite"):
            auroc_interval(np.array([0.0, bad]), good)
    with pytest.raises(ValueError, match=r"in_scores have shape \(0,\)"):
        auroc(np.array([]), good)
    with pytest.raises(ValueError, match=r"out_scores have shape \(4, 1\)"):
        auroc(good, good[:, None])


def test_outlier_sets(key):
    images = np.random.default_rng(5).integers(0, 256, (500, 4, 5, 3), dtype=np.uint8)
    sets = outliers(key, images)
    assert list(sets) == ["uniform_noise", "constant", "shuffled", "interpolation"]
    assert all(x.shape == images.shape and x.dtype == np.uint8 for x in sets.values())

    noise = sets["uniform_noise"].astype(float)
    assert (noise.min(), noise.max()) == (0, 255)
    assert abs(noise.mean() - 127.5) < 5 * np.sqrt((256**2 - 1) / 12 / noise.size)

    levels = sets["constant"][:, 0, 0, 0]
    np.testing.assert_array_equal(sets["constant"], np.broadcast_to(levels[:, None, None, None], images.shape))
    assert len(np.unique(levels)) > 150  # 256 (1 - (1 - 1/256)^500) = 220 expected

    colours = lambda x: np.sort(x.astype(int).reshape(500, 20, 3) @ [65536, 256, 1])  # noqa: E731
    np.testing.assert_array_equal(colours(sets["shuffled"]), colours(images))
    assert (sets["shuffled"] != images).any((1, 2, 3)).all()


def test_every_image_is_shuffled_in_its_own_order(key):
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    shuffled = outliers(key, np.repeat(pixels, 50, 0))["shuffled"]
    assert len({image.tobytes() for image in shuffled}) == 50
    assert (outliers(jax.random.key(1), np.repeat(pixels, 50, 0))["shuffled"] != shuffled).any()


def test_interpolations_are_means_of_two(key):
    images = np.random.default_rng(9).integers(0, 256, (40, 2, 2, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(40)
    mixed = outliers(key, images)["interpolation"]
    pairs = {(i, j): (images[i].astype(int) + images[j] + 1) // 2 for i in range(40) for j in range(i)}
    partners = [[i in pair for pair, image in pairs.items() if (image == x).all()] for i, x in enumerate(mixed)]
    assert all(any(found) for found in partners)  # each is the mean of its own image and another one


def test_each_image_is_mixed_into_one_other(key):
    # an image of its own bit each: the sum of all mixtures counts each image once as itself and once as another's
    images = np.eye(64, dtype=np.uint8).reshape(64, 8, 8, 1) * 200
    mixed = outliers(key, images)["interpolation"]
    np.testing.assert_array_equal(mixed.astype(int).sum(0), 200)
    np.testing.assert_array_equal((mixed == 100).sum((1, 2, 3)), 2)


def test_both_sets_pass_the_lower_resolution():
    random = np.random.default_rng(10)
    inside, large = (
        random.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        random.integers(0, 256, (5, 16, 20, 3), dtype=np.uint8),
    )
    a, b, steps = match_resolutions(inside, large, 8)
    np.testing.assert_array_equal(a, inside)
    np.testing.assert_array_equal(b, resize_antialiased(large[:, :, 2:18], 8))
    assert steps == ["centre square", "both sets to 8x8, triangle filter, antialiased"]

    small = random.integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    a, b, steps = match_resolutions(inside, small, 8)
    np.testing.assert_array_equal(a, resize_antialiased(resize_antialiased(inside, 4), 8))
    np.testing.assert_array_equal(b, resize_antialiased(np.repeat(small, 3, -1), 8))
    assert steps[0] == "grey as three colours"
    assert [step[:16] for step in steps[1:]] == ["both sets to 4x4", "both sets to 8x8"]
    # the trap: the same images, one set through the lower resolution and the other not, can be told apart
    rough = lambda x: np.abs(np.diff(x.astype(float), axis=2)).mean((1, 2, 3))  # noqa: E731
    many = random.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    careless = resize_antialiased(resize_antialiased(many[200:], 4), 8)
    assert auroc(-rough(many[:200]), -rough(careless)) > 0.99
    a, b, _ = match_resolutions(many[:200], resize_antialiased(many[200:], 4), 8)
    assert 0.4 < auroc(-rough(a), -rough(b)) < 0.6


def test_shrinking_averages_and_colours_become_luminance():
    flat = np.full((1, 9, 9, 1), 200, np.uint8)
    np.testing.assert_array_equal(resize_antialiased(flat, 4), 200)
    stripes = np.tile(np.array([0, 255], np.uint8), 8).reshape(1, 1, 16, 1).repeat(16, 1)
    shrunk = resize_antialiased(stripes, 4)[0, :, 1:-1, 0].astype(int)
    assert np.abs(shrunk - 127.5).max() < 10
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    _, grey, steps = match_resolutions(flat[:, :4, :4], red, 4)
    np.testing.assert_array_equal(grey, 76)
    assert steps == ["luminance, BT.601"]
    mixed = np.broadcast_to(np.array([10, 200, 90], np.uint8), (1, 4, 4, 3))
    _, grey, _ = match_resolutions(flat[:, :4, :4], mixed, 4)
    np.testing.assert_array_equal(grey, 131)  # 0.299 · 10 + 0.587 · 200 + 0.114 · 90 = 130.65
    # of a tall picture the middle is kept, too
    rows = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None, None], (1, 8, 4, 1))
    _, middle, _ = match_resolutions(flat[:, :4, :4], rows, 4)
    np.testing.assert_array_equal(middle[0, :, 0, 0], [2, 3, 4, 5])


@pytest.mark.parametrize(("size", "target"), [(27, 9), (21, 8), (32, 5), (15, 14), (5, 13), (8, 16)])
def test_resizing_is_pillows(size, target):
    # odd factors too: at even ones a filter that does not widen falls between two pixels and looks as if it did
    images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    found = resize_antialiased(images, target)
    assert found.dtype == np.uint8
    for image, ours in zip(images, found, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))  # in floats, so that it rounds once, too
            theirs = np.asarray(plane.resize((target, target), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(ours[..., channel], theirs, atol=0.5 + 1e-3)


def test_brightness_and_contrast_as_a_score():
    random = np.random.default_rng(11)
    data = random.integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    scores = channel_statistics(data, data)
    assert scores.mean() == pytest.approx(6 * 299 / 300, rel=1e-9)  # the trace of the identity
    dark, flat = data // 4, (data // 8 + 112)
    assert auroc(scores, channel_statistics(dark, data)) == auroc(scores, channel_statistics(flat, data)) == 1.0


def test_compressed_size_orders_by_complexity(key):
    images = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None, None], 32, 2).repeat(3, 0)
    sets = outliers(key, images)
    constant, plain, noise = (compressed_size(x) for x in (sets["constant"], images, sets["uniform_noise"]))
    assert constant.max() < plain.min()
    assert plain.max() < noise.min()
