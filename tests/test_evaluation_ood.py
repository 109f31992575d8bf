"""AUROC against its definition and the normal law; the outlier sets."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

from jebm.evaluation.ood import auroc, auroc_interval, compressed_size, outliers


def test_by_the_definition_with_ties():
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 6, 31).astype(float), random.integers(1, 8, 17).astype(float)
    higher = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    assert 0.4 < higher < 0.49
    assert auroc(inside, outside) == pytest.approx(higher, rel=1e-14)
    assert auroc(outside, inside) == pytest.approx(1 - higher, rel=1e-14)
    assert auroc(inside, np.full(5, 9.0)) == 1.0
    assert auroc(inside, np.full(5, -1.0)) == 0.0
    assert auroc(np.ones(4), np.ones(3)) == 0.5


def test_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(1)
    inside, outside = random.normal(0, 1, 300), random.normal(0.4, 2, 200)
    expected = roc_auc_score([0] * 300 + [1] * 200, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, rel=1e-13)


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
    assert list(sets) == ["uniform_noise", "constant", "shuffled"]
    assert all(x.shape == images.shape and x.dtype == np.uint8 for x in sets.values())

    noise = sets["uniform_noise"].astype(float)
    assert (noise.min(), noise.max()) == (0, 255)
    assert abs(noise.mean() - 127.5) < 5 * np.sqrt((256**2 - 1) / 12 / noise.size)

    levels = sets["constant"][:, 0, 0, 0]
    np.testing.assert_array_equal(
        sets["constant"], np.broadcast_to(levels[:, None, None, None], images.shape)
    )
    assert len(np.unique(levels)) > 150  # 256 (1 - (1 - 1/256)^500) = 220 expected

    colours = lambda x: np.sort(x.astype(int).reshape(500, 20, 3) @ [65536, 256, 1])  # noqa: E731
    np.testing.assert_array_equal(colours(sets["shuffled"]), colours(images))
    assert (sets["shuffled"] != images).any((1, 2, 3)).all()


def test_every_image_is_shuffled_in_its_own_order(key):
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    shuffled = outliers(key, np.repeat(pixels, 50, 0))["shuffled"]
    assert len({image.tobytes() for image in shuffled}) == 50
    assert (outliers(jax.random.key(1), np.repeat(pixels, 50, 0))["shuffled"] != shuffled).any()


def test_compressed_size_orders_by_complexity(key):
    images = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None, None], 32, 2).repeat(3, 0)
    sets = outliers(key, images)
    constant, plain, noise = (compressed_size(x) for x in (sets["constant"], images, sets["uniform_noise"]))
    assert constant.max() < plain.min()
    assert plain.max() < noise.min()
