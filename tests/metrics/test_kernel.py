"""Kernel distance, precision and recall, the classifier's score; PSNR and SSIM; sets of features."""

import numpy as np
import pytest

from jebm.data import permutation
from jebm.metrics.feature_statistics import feature_set
from jebm.metrics.features import Features
from jebm.metrics.frechet import statistics
from jebm.metrics.image_quality import psnr, ssim
from jebm.metrics.kernel import classifier_score, kernel_distance, precision_recall

# kernel distance


def test_equal_laws_are_at_distance_zero_in_the_mean():
    random = np.random.default_rng(0)
    draw = lambda mean: random.normal(mean, 1, (400, 5))  # noqa: E731
    same = [kernel_distance(draw(0), draw(0), block_size=40).value for _ in range(60)]
    error = np.std(same, ddof=1) / np.sqrt(60)
    assert abs(np.mean(same)) < 4 * error
    assert min(same) < 0
    # a biased estimate (with the diagonals) would be about 2 (E k(x, x) - E k(x, y)) / n = 0.66 above
    assert error < 0.05


def test_the_kernel_distance_of_two_shifted_laws():
    # d = 1, k = (x y + 1)³: Σ_j C(3, j) (E x^j - E y^j)², for N(0, 1) against N(1, 1): moments 0 1 0 and 1 2 4
    expected = 3 * 1 + 3 * 1 + 1 * 16
    random = np.random.default_rng(1)
    values = [
        kernel_distance(random.normal(0, 1, (500, 1)), random.normal(1, 1, (500, 1)), block_size=50) for _ in range(40)
    ]
    mean, spread = np.mean([v.value for v in values]), np.std([v.value for v in values], ddof=1)
    assert abs(mean - expected) < 5 * spread / np.sqrt(40)
    assert spread / np.sqrt(40) < 0.1 * expected
    # the standard error is the spread of whole estimates
    assert np.mean([v.standard_error for v in values]) == pytest.approx(spread, rel=0.35)
    assert (values[0].num_blocks, values[0].block_size) == (10, 50)


def test_blocks_are_disjoint_and_seeded():
    x, y = np.random.default_rng(2).normal(size=(2, 57, 3))
    once = kernel_distance(x, y)
    assert (once.num_blocks, once.block_size) == (11, 5)
    assert once == kernel_distance(x, y)
    assert once != kernel_distance(x, y, seed=1)
    with pytest.raises(ValueError, match="sets of 57 and 19 features"):
        kernel_distance(x, y[:19])
    with pytest.raises(ValueError, match=r"shapes \(57, 3\) and \(57, 2\)"):
        kernel_distance(x, y[:, :2])


# precision and recall


def test_precision_and_recall_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [13.0]])  # balls of the first neighbour: 1 1 1, 1 1 2
    generated = np.array([[0.5], [2.9], [5.0], [5.1]])  # balls: 2.4, 2.1, 0.1, 0.1
    precision, recall = precision_recall(real, generated, neighbours=1)
    assert precision == 0.5  # 0.5 and 2.9
    assert recall == 0.5  # 0, 1 and 2 lie within the first two balls; 10, 11, 13 in none
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1000) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no 4-th neighbours"):
        precision_recall(real, generated, neighbours=4)


def test_a_model_of_one_mode_is_precise_and_recalls_half():
    random = np.random.default_rng(3)
    real = np.concatenate([random.normal(0, 1, (600, 2)), random.normal(30, 1, (600, 2))])
    precision, recall = precision_recall(real, random.normal(0, 1, (1100, 2)))
    assert precision > 0.9
    assert 0.45 < recall <= 0.5


def inside_by_brute_force(centres, points, k):
    """Plainly: a point is inside if some centre is no farther than that centre's k-th nearest other centre."""
    between = np.sqrt(np.square(centres[:, None] - centres[None]).sum(-1))
    np.fill_diagonal(between, np.inf)  # a centre is not its own neighbour
    radii = np.sort(between, 1)[:, k - 1]
    return (np.sqrt(np.square(points[:, None] - centres[None]).sum(-1)) <= radii).any(1).mean()


@pytest.mark.parametrize("neighbours", [1, 5])
def test_precision_and_recall_beyond_one_block(neighbours):
    # far from the origin, with gaps; each set has its first thousand elsewhere than the rest
    random = np.random.default_rng(8)
    shift = np.repeat([0.0, 9.0], [1000, 300])[:, None]
    real = 50 + shift + random.normal(0, 1, (1300, 2)) * random.uniform(0.1, 6, (1300, 1))
    generated = 50 + shift[:1250] + random.normal([0.5, 0], 1, (1250, 2)) * random.uniform(1, 8, (1250, 1))
    expected = (
        inside_by_brute_force(real, generated, neighbours), inside_by_brute_force(generated, real, neighbours)
    )  # fmt: skip
    assert precision_recall(real, generated, neighbours=neighbours) == pytest.approx(expected, abs=1e-12)
    assert expected[0] != expected[1]
    # the next neighbour, the first block alone: other numbers
    assert expected != (inside_by_brute_force(real, generated, neighbours + 1), expected[1])
    assert expected != (inside_by_brute_force(real[:1000], generated, neighbours), expected[1])


# a classifier's score


def test_classifier_score_in_closed_form():
    sure = 50 * np.eye(4)[np.arange(80) % 4]
    assert classifier_score(sure, num_splits=2)[0] == pytest.approx(4, rel=1e-6)
    assert classifier_score(np.ones((80, 4)))[0] == pytest.approx(1)
    assert classifier_score(np.repeat(sure[:1], 80, 0))[0] == pytest.approx(1)
    # p = (3/4, 1/4) or (1/4, 3/4): exp KL against 1/2 is 2 (3/4)^(3/4) (1/4)^(1/4)
    half = np.log([[3.0, 1.0], [1.0, 3.0]] * 10)
    assert classifier_score(half, num_splits=5)[0] == pytest.approx(2 * 0.75**0.75 * 0.25**0.25)
    with pytest.raises(ValueError, match="3 images in 10 splits"):
        classifier_score(sure[:3])


# against scikit-image


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_against_scikit_image(channels):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    random = np.random.default_rng(4)
    x = np.cumsum(random.normal(size=(3, 21, 17, channels)), 1) / 10
    y = 0.8 * x + 0.1 * random.normal(size=x.shape)
    for i, (p, s) in enumerate(zip(psnr(x, y), ssim(x, y), strict=True)):
        assert p == pytest.approx(metrics.peak_signal_noise_ratio(x[i], y[i], data_range=2.0), rel=1e-12)
        expected = metrics.structural_similarity(
            x[i], y[i], data_range=2.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert s == pytest.approx(expected, rel=1e-10)
        assert 0.05 < s < 0.95
    levels = random.integers(0, 256, (2, 12, 12, channels), dtype=np.uint8)
    assert psnr(levels, 255 - levels, data_range=255)[0] == pytest.approx(
        metrics.peak_signal_noise_ratio(levels[0], 255 - levels[0]), rel=1e-12
    )


def test_psnr_and_ssim_at_the_ends():
    x = np.random.default_rng(5).uniform(-1, 1, (2, 11, 11, 1))
    np.testing.assert_array_equal(psnr(x, x), np.inf)
    np.testing.assert_allclose(psnr(x, x + 0.2), 20)
    np.testing.assert_allclose(ssim(x, x), 1)
    with pytest.raises(ValueError, match="10 x 11 are smaller"):
        ssim(x[:, 1:], x[:, 1:])
    with pytest.raises(ValueError, match=r"\(1, 11, 11, 1\) and targets \(2"):
        psnr(x[:1], x)


# sets of features


class Space:
    """The first three pixels, and how many images were asked for."""

    def __init__(self):
        self.seen = 0
        self.features = Features(self.function, {"feature_space": "pixels"})

    def function(self, images):
        self.seen += len(images)
        return images[:, 0, :3, 0].astype(np.float32)


def test_a_set_of_features_in_chunks(monkeypatch):
    from jebm.metrics import feature_statistics as reference

    monkeypatch.setattr(reference, "CHUNK", 4)
    images = np.random.default_rng(6).integers(0, 256, (43, 2, 3, 1), dtype=np.uint8)
    space = Space()
    found = feature_set(images, space.features, most_kept=30)
    whole = statistics(images[:, 0, :, 0].astype(float))
    assert [part.n for part in found.parts] == [11, 11, 11, 10]
    np.testing.assert_allclose(found.statistics.covariance, whole.covariance, rtol=1e-12)
    # the kept ones are a random choice in a random order, each the features of its own image
    np.testing.assert_array_equal(found.kept, images[permutation(0, 0, 43)[:30], 0, :, 0])
    np.testing.assert_array_equal(
        feature_set(images, space.features, most_kept=50).kept, images[permutation(0, 0, 43), 0, :, 0]
    )
    assert space.seen == 2 * 43
    with pytest.raises(ValueError, match="7 images; statistics need at least 8"):
        feature_set(images[:7], space.features)


def test_statistics_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path))
    images = np.random.default_rng(7).integers(0, 256, (43, 2, 3, 1), dtype=np.uint8)
    space = Space()
    first = feature_set(images, space.features, cache=True)
    again = feature_set(images, space.features, cache=True)
    assert space.seen == 43
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again.kept, first.kept)
    (file,) = (tmp_path / "statistics").iterdir()
    # other images and another space are other files; a damaged file is made anew
    feature_set(images[1:], space.features, cache=True)
    feature_set(images, space.features._replace(declaration={"feature_space": "others"}), cache=True)
    assert (space.seen, len(list((tmp_path / "statistics").iterdir()))) == (43 + 42 + 43, 3)
    file.write_bytes(file.read_bytes()[:100])
    assert feature_set(images, space.features, cache=True).sha256 == first.sha256
    assert space.seen == 43 + 42 + 43 + 43
    assert len(feature_set(images, space.features, most_kept=9, cache=True).kept) == 9  # another file, too
    assert feature_set(images[1:], space.features).sha256 != first.sha256
