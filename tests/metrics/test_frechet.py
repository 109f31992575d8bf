"""The Fréchet distance against closed forms, a high-precision reference and its own small-sample law."""

import numpy as np
import pytest

from jebm.metrics.frechet import Statistics, extrapolated, frechet_distance, merge, square_root, statistics


def covariance(d: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(d, d))
    return factor @ factor.T / d + 0.1 * np.diag(np.arange(1, d + 1))


def test_statistics_against_numpy():
    x = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    n, mean, cov = statistics(x)
    assert n == 50
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, x.astype(float).mean(0), rtol=1e-14)
    np.testing.assert_allclose(cov, np.cov(x.astype(float), rowvar=False), rtol=1e-12)


def test_float32_features_are_summed_in_float64():
    x = (4096 + np.random.default_rng(0).normal(0, 1, (20_000, 1))).astype(np.float32)
    np.testing.assert_allclose(statistics(x).covariance[0, 0], x.astype(float).var(ddof=1), rtol=1e-12)


def test_one_dimension_in_closed_form():
    a = Statistics(10, np.array([1.0]), np.array([[9.0]]))
    b = Statistics(10, np.array([-1.0]), np.array([[4.0]]))
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 2) ** 2, rel=1e-14)


def test_two_dimensions_that_do_not_commute():
    # tr (A B)^½ of 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det AB))
    a = np.array([[5.0, 1.5], [1.5, 1.0]])
    b = np.array([[1.0, -0.5], [-0.5, 3.0]])
    assert np.abs(a @ b - b @ a).max() > 0.9
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = 0.25 + 4 + np.trace(a) + np.trace(b) - 2 * overlap
    value = frechet_distance(Statistics(9, np.array([0.5, 0.0]), a), Statistics(9, np.array([0.0, 2.0]), b))
    assert value == pytest.approx(expected, rel=1e-13)


def test_many_dimensions_against_the_matrix_square_root():
    from scipy.linalg import sqrtm

    a, b = covariance(24, 0), 3 * covariance(24, 1)
    difference = np.linspace(-1, 2, 24)
    expected = difference @ difference + np.trace(a + b) - 2 * np.trace(sqrtm(a @ b)).real
    forwards = frechet_distance(Statistics(9, difference, a), Statistics(9, np.zeros(24), b))
    backwards = frechet_distance(Statistics(9, np.zeros(24), b), Statistics(9, difference, a))
    assert forwards == pytest.approx(expected, rel=1e-11)
    assert backwards == pytest.approx(expected, rel=1e-11)
    known = square_root(Statistics(9, np.zeros(24), b))
    assert frechet_distance(Statistics(9, difference, a), Statistics(9, np.zeros(24), b), known) == forwards


def test_the_same_statistics_are_at_no_distance_even_when_singular():
    few = statistics(np.random.default_rng(0).normal(size=(5, 30)))
    assert np.linalg.matrix_rank(few.covariance) == 4
    assert 0 <= frechet_distance(few, few) < 1e-6


def test_two_samples_of_one_law_are_biased_by_the_known_amount():
    # N(0, I_d), n each: (2 d + d (d + 1) / 2) / n to first order; d = 16: 168 / n
    d, n, random = 16, 2000, np.random.default_rng(0)
    values = [
        frechet_distance(statistics(random.normal(size=(n, d))), statistics(random.normal(size=(n, d))))
        for _ in range(40)
    ]
    error = np.std(values, ddof=1) / np.sqrt(40)
    assert error < 0.02 * 168 / n  # the test can tell 168 from, say, 152 (division by 2 n forgotten in a term)
    assert abs(np.mean(values) - 168 / n) < 5 * error + 0.01 * 168 / n


def test_a_sample_against_the_exact_law_is_biased_by_the_known_amount():
    # (d + d (d + 1) / 4) / n: d = 16: 84 / n
    d, n, random = 16, 2000, np.random.default_rng(1)
    exact = Statistics(n, np.zeros(d), np.eye(d))
    values = [frechet_distance(statistics(random.normal(size=(n, d))), exact) for _ in range(40)]
    error = np.std(values, ddof=1) / np.sqrt(40)
    assert error < 0.03 * 84 / n
    assert abs(np.mean(values) - 84 / n) < 5 * error + 0.01 * 84 / n


def test_statistics_of_parts_merge_into_those_of_the_whole():
    x = np.random.default_rng(3).normal([100, -7, 0], [1, 5, 0.1], (41, 3))
    whole = statistics(x)
    for cuts in ([13], [2, 5, 30]):
        merged = merge([statistics(part) for part in np.split(x, cuts)])
        assert merged.n == 41
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="no statistics to merge"):
        merge([])


def test_the_distance_at_infinity_has_lost_the_bias():
    # against exact statistics the bias is (d + d (d + 1) / 4) / n; d = 8: 26 / n; the second law is 0.09 d away
    d, n, random = 8, 1600, np.random.default_rng(4)
    for shift in (0.0, 0.3):
        exact = Statistics(n, np.full(d, shift), np.eye(d))
        limits, plain = [], []
        for _ in range(40):
            parts = [statistics(part) for part in np.split(random.normal(size=(n, d)), 4)]
            limits.append(extrapolated(parts, exact))
            plain.append(frechet_distance(merge(parts), exact))
        error = np.std(limits, ddof=1) / np.sqrt(40)
        assert error < 0.2 * 26 / n + 0.05 * shift**2
        assert abs(np.mean(limits) - d * shift**2) < 5 * error
        assert np.mean(plain) - d * shift**2 > 0.5 * 26 / n
    for sizes in ([10, 10, 10], [10, 12], [10]):
        with pytest.raises(ValueError, match="wanted are 2, 4, 8"):
            extrapolated([exact._replace(n=size) for size in sizes], exact)


def test_what_has_no_distance():
    x = np.random.default_rng(0).normal(size=(6, 3))
    good = statistics(x)
    with pytest.raises(ValueError, match="features have shape \\(1, 3\\)"):
        statistics(x[:1])
    with pytest.raises(ValueError, match="features have shape \\(6,\\)"):
        statistics(x[:, 0])
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[2, 1] = bad
        with pytest.raises(ValueError, match="features: 1 of 18 numbers are NaN or infinite"):
            statistics(spoilt)
        for a, b in ((good, good._replace(mean=spoilt[2])), (good._replace(mean=spoilt[2]), good)):
            with pytest.raises(ValueError, match="mean: 1 of 3 numbers are NaN or infinite"):
                frechet_distance(a, b)
        with pytest.raises(ValueError, match="second covariance: 1 of 9"):
            frechet_distance(good, good._replace(covariance=np.where(np.eye(3) * [0, 1, 0], bad, 1.0)))
    with pytest.raises(ValueError, match="of 3 and of 2 features"):
        frechet_distance(good, statistics(x[:, :2]))
    with pytest.raises(ValueError, match="not symmetric"):
        frechet_distance(good, good._replace(covariance=np.triu(np.ones((3, 3)))))
    with pytest.raises(ValueError, match="eigenvalue -1"):
        frechet_distance(good, good._replace(covariance=np.diag([1.0, 2.0, -1.0])))
    with pytest.raises(ValueError, match="first covariance, seen from the second, has the eigenvalue -1"):
        frechet_distance(good._replace(covariance=np.diag([1.0, 2.0, -1.0])), good._replace(covariance=np.eye(3)))
    with pytest.raises(ValueError, match="first covariance: 1 of 9"):
        frechet_distance(good._replace(covariance=np.where(np.eye(3) * [0, 1, 0], np.nan, 1.0)), good)
