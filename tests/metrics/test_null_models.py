"""Null models against the laws that they are said to have; spoilt images."""

import numpy as np
import pytest

from jebm.metrics import null_models
from jebm.metrics.frechet import frechet_distance, merge, standard_error, statistics

SHAPE = (2, 3, 1)


def levels(random, n, mean=127.0, deviation=20.0):
    return np.clip(np.rint(random.normal(mean, deviation, (n, *SHAPE))), 0, 255).astype(np.uint8)


def rows(images):
    return images.reshape(len(images), -1).astype(np.float64)


def test_the_gaussian_has_the_mean_and_the_covariance_of_the_images():
    images = levels(np.random.default_rng(0), 4)  # of so few, N - 1 is not N
    n = 60_000
    drawn = rows(null_models.gaussian(images, n).images)
    expected = statistics(rows(images))
    scale = np.sqrt(np.diag(expected.covariance))
    assert np.abs((drawn.mean(0) - expected.mean) / scale).max() < 5 / np.sqrt(n)
    # rounding adds 1/12; the largest of 36 entries deviates by 5 sqrt(2 / n)
    error = (statistics(drawn).covariance - expected.covariance - np.eye(6) / 12) / np.outer(scale, scale)
    assert np.abs(error).max() < 7 * np.sqrt(2 / n)


def test_the_distance_of_the_gaussian_from_gaussian_data_is_the_bias():
    # against the law that it is drawn from, n images of d numbers: σ² (d + d (d + 1) / 4) / n
    random, n, d, sigma = np.random.default_rng(1), 200, 6, 20.0
    images = levels(random, 800, deviation=sigma)
    target = statistics(rows(images))
    distances = [
        frechet_distance(statistics(rows(null_models.gaussian(images, n, seed=seed).images)), target)
        for seed in range(12)
    ]
    expected = sigma**2 * (d + d * (d + 1) / 4) / n
    # a mean of twelve sums of some 27 chi-squares; more, the covariance's terms are not exact
    assert np.mean(distances) == pytest.approx(expected, rel=5 * np.sqrt(2 / 27 / 12))


def test_the_mixture_finds_modes_that_the_gaussian_does_not():
    random = np.random.default_rng(2)
    images = np.concatenate([levels(random, 60, 60, 4), levels(random, 180, 190, 4)])
    drawn = null_models.mixture(images, 4000)
    assert drawn.protocol["num_components"] == 4  # 50 images each
    assert drawn.protocol["num_principal_components"] == 6
    assert drawn.protocol["seconds_to_fit"] > 0
    means = rows(drawn.images).mean(1)
    assert np.minimum(np.abs(means - 60), np.abs(means - 190)).max() < 25
    assert (means < 125).mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 4000))
    assert np.std(rows(drawn.images)[means > 125]) == pytest.approx(4, rel=0.15)
    # in no order: each half has both
    assert (means[:2000] < 125).mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 2000))
    blurred = rows(null_models.gaussian(images, 1000).images).mean(1)
    assert ((blurred > 90) & (blurred < 160)).mean() > 0.2
    np.testing.assert_array_equal(null_models.mixture(images, 50).images, null_models.mixture(images, 50).images)


def test_null_models_of_few_images():
    few = levels(np.random.default_rng(3), 7)
    about = null_models.mixture(few, 10).protocol
    assert (about["num_components"], about["num_principal_components"]) == (1, 1)
    same = np.full((20, *SHAPE), 9, np.uint8)
    np.testing.assert_array_equal(null_models.gaussian(same, 5).images, same[:5])
    np.testing.assert_array_equal(null_models.mixture(same, 5).images, same[:5])
    for make in (null_models.gaussian, null_models.mixture):
        with pytest.raises(ValueError, match="1 training images; null models are fitted on 2 or more"):
            make(few[:1], 5)


def test_repeats_are_of_training_images():
    images = levels(np.random.default_rng(4), 300)
    drawn = null_models.repeats(images, 2000)
    assert drawn.protocol["k"] == 100
    found, counts = np.unique(rows(drawn.images), axis=0, return_counts=True)
    assert set(counts) == {20}
    assert {tuple(x) for x in found} < {tuple(x) for x in rows(images)}
    assert null_models.repeats(images, 45).protocol["k"] == 4


def test_spoilt_images():
    images = np.full((60, 8, 8, 1), 127, np.uint8)
    images[:, 4:] = 217  # an edge
    images += (7 * np.arange(60) % 30).astype(np.uint8)[:, None, None, None]  # neighbours in the file differ
    labels = np.arange(60) % 3
    found = null_models.corruptions(images, labels, 40)
    names = ["real", "noise_weak", "noise_strong", "blur_weak", "blur_strong", "half_of_the_classes", "one_class"]
    assert list(found) == names
    np.testing.assert_array_equal(found["real"], images[:40])
    for name, scale in (("noise_weak", 0.1), ("noise_strong", 0.3)):  # rows that noise does not clip
        error = found[name][:, :4].astype(float) - images[:40, :4]
        assert error[np.abs(images[:40, :4].astype(float) - 140) < 10].std() == pytest.approx(127.5 * scale, rel=0.1)
    steps = [np.abs(np.diff(found[name].astype(float), axis=1)).max() for name in ("real", "blur_weak", "blur_strong")]
    assert steps[0] == 90 > steps[1] > steps[2] > 10
    np.testing.assert_allclose(found["blur_strong"].mean((1, 2, 3)), images[:40].mean((1, 2, 3)), atol=0.6)
    np.testing.assert_array_equal(found["half_of_the_classes"], images[labels == 0])
    np.testing.assert_array_equal(found["one_class"][:8], images[[0, 3, 6, 9] * 2])  # a tenth of 40
    assert found["one_class"].shape == (40, 8, 8, 1)
    # without labels tenths of the images along their main direction, here brightness
    one = null_models.corruptions(images, None, 40)["one_class"]
    assert set(one[:, 0, 0, 0]) <= {127, 128, 129} or set(one[:, 0, 0, 0]) <= {154, 155, 156}
    assert "blur_weak" not in null_models.corruptions(images[:, :2, :2], labels, 40)


def test_the_standard_error_of_a_frechet_distance():
    # the deviation over many samples, from any one of them
    random = np.random.default_rng(5)
    target = statistics(random.normal(size=(4000, 2)))
    distances, errors = [], []
    for _ in range(300):
        parts = [statistics(x) for x in random.normal(0.5, 1.0, (4, 40, 2))]
        distances.append(frechet_distance(merge(parts), target))
        errors.append(standard_error(parts, target) ** 2)
    assert np.mean(errors) == pytest.approx(np.var(distances), rel=0.5)
    with pytest.raises(ValueError, match="1 part; a standard error needs two or more"):
        standard_error(parts[:1], target)
