"""The restoration sampler against the exact posterior of Gaussian priors, and planted faults that must show."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from helpers.laws import Move, accept, exact_law, gaussian_test, reject, stationary_covariance

from jebm import energy as energies
from jebm import mcmc, restoration
from jebm.energy import bind
from jebm.restoration import Inpainting, Matrix, Prior, RestorationConfig, sampler, tasks

RNG = np.random.default_rng(11)
SHAPE, LATENT = (4, 4, 1), 3
WEIGHTS, OFFSET = RNG.standard_normal((16, LATENT)), 0.3 * RNG.standard_normal(16)
PRECISION, MEAN = np.linspace(0.4, 1.6, 16), 0.2 * RNG.standard_normal(16)
MATRIX = 0.4 * RNG.standard_normal((5, 16))
OPERATORS = {
    "pooling": restoration.average_pooling(4, 2),
    "mask": Inpainting.of(np.arange(16).reshape(4, 4) % 3 == 0),
    "matrix": Matrix.of(MATRIX, SHAPE),
}


def affine(weights, offset, z):
    return (weights @ z + offset).reshape(SHAPE)


def quadratic(x):
    return 0.5 * jnp.sum(jnp.asarray(PRECISION, jnp.float32) * (x.reshape(-1) - jnp.asarray(MEAN, jnp.float32)) ** 2)


PRIOR = Prior(
    bind(affine, jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(OFFSET, jnp.float32)), quadratic, jnp.zeros(LATENT)
)


def matrix_of(function, size=16, shape=SHAPE):
    columns = [np.asarray(function(jnp.asarray(row.reshape(shape), jnp.float32))).ravel() for row in np.eye(size)]
    return np.stack(columns, 1).astype(np.float64)


@dataclasses.dataclass
class Case:
    operator: restoration.Operator
    y: np.ndarray
    a: np.ndarray  # A
    inverse: np.ndarray  # A⁺
    null: np.ndarray  # I - A⁺A


@pytest.fixture(scope="module", params=OPERATORS)
def case(request):
    operator = OPERATORS[request.param]
    y = np.asarray(operator.apply(jnp.asarray(RNG.uniform(-1, 1, SHAPE), jnp.float32)))
    a = matrix_of(operator.apply)
    return Case(operator, y, a, np.linalg.pinv(a), np.eye(16) - np.linalg.pinv(a) @ a)


CONFIG = RestorationConfig(
    restarts=4096, descent_steps=0, num_steps=7, step_size=0.02, energy_weight=0.7, noise_std=0.0, likelihood_std=0.6
)


def quadratic_potential(case, config):
    """Curvature Λ and minimum of U."""
    seen = case.null @ WEIGHTS
    target = case.inverse @ case.y.ravel() + case.null @ OFFSET - MEAN
    curvature = np.eye(LATENT) + config.energy_weight * seen.T @ np.diag(PRECISION) @ seen
    slope = config.energy_weight * seen.T @ (PRECISION * target)
    likelihood = case.a @ WEIGHTS / config.deviation
    curvature += likelihood.T @ likelihood
    slope += likelihood.T @ (case.a @ OFFSET - case.y.ravel()) / config.deviation
    return curvature, -np.linalg.solve(curvature, slope)


def latent_law(case, config):
    curvature, mode = quadratic_potential(case, config)
    move = Move([config.step_size] * LATENT, curvature, mode, config.temperature)
    return exact_law([move] * config.num_steps, np.zeros(LATENT), np.eye(LATENT))[:2]


def run(case, config, key=3):
    return restoration.restore(jax.random.key(key), PRIOR, case.operator, jnp.asarray(case.y)[None], config)


def test_the_latent_chain_has_its_exact_law(case):
    restored = run(case, CONFIG)
    accept(gaussian_test(restored.latents[0], *latent_law(case, CONFIG)))
    # and each image is A⁺y + (I - A⁺A) G(z), with the measurement y
    z = np.asarray(restored.latents[0], np.float64)
    expected = case.inverse @ case.y.ravel() + (z @ WEIGHTS.T + OFFSET) @ case.null.T
    np.testing.assert_allclose(restored.samples[0].reshape(-1, 16), expected, atol=1e-5)
    np.testing.assert_allclose(
        restored.samples[0].reshape(-1, 16) @ case.a.T, np.tile(case.y.ravel(), (4096, 1)), atol=1e-5
    )


def test_long_chains_reach_the_inflated_posterior():
    case = case_of("pooling")
    curvature, mode = quadratic_potential(case, CONFIG)
    step = 0.5 / np.linalg.eigvalsh(curvature).max()
    config = dataclasses.replace(CONFIG, num_steps=60, step_size=float(step))
    inflated = stationary_covariance(curvature, float(step), 1.0)
    assert np.max(np.abs(np.linalg.matrix_power(np.eye(LATENT) - step * curvature, 60))) < 1e-2
    restored = run(case, config)
    accept(gaussian_test(restored.latents[0], mode, inflated))
    reject(gaussian_test(restored.latents[0], mode, np.linalg.inv(curvature)))  # the inflation is seen


def case_of(name):
    operator = OPERATORS[name]
    y = np.asarray(operator.apply(jnp.asarray(np.random.default_rng(4).uniform(-1, 1, SHAPE), jnp.float32)))
    a = matrix_of(operator.apply)
    return Case(operator, y, a, np.linalg.pinv(a), np.eye(16) - np.linalg.pinv(a) @ a)


def test_the_latent_chain_is_at_its_temperature():
    case = case_of("mask")
    config = dataclasses.replace(CONFIG, temperature=0.5)
    latents = run(case, config).latents[0]
    accept(gaussian_test(latents, *latent_law(case, config)))
    reject(gaussian_test(latents, *latent_law(case, CONFIG)))


def test_the_potential_of_a_noisy_measurement_by_value():
    case = case_of("matrix")
    config = dataclasses.replace(CONFIG, noise_std=0.3, likelihood_std=None)
    z = np.array([0.4, -1.1, 0.7])
    x = WEIGHTS @ z + OFFSET
    expected = (
        0.5 * z @ z + 0.7 * 0.5 * PRECISION @ (x - MEAN) ** 2
        + np.square(case.a @ x - case.y.ravel()).sum() / (2 * 0.3**2)
    )  # fmt: skip
    potential = restoration.latent_potential(PRIOR, case.operator, jnp.asarray(case.y), config)
    assert float(potential(jnp.asarray(z, jnp.float32))) == pytest.approx(expected, rel=1e-4)
    assert RestorationConfig().deviation == 0.1
    assert RestorationConfig(noise_std=0.3, likelihood_std=0.6).deviation == 0.6


MUTANTS = {
    "no prior on z": lambda prior, operator, y, weight, deviation, z: TRUE(prior, operator, y, weight, deviation, z)
    - energies.standard_normal(z),
    "likelihood without the half": lambda prior, operator, y, weight, deviation, z: TRUE(
        prior, operator, y, weight, deviation / jnp.sqrt(2.0), z
    ),
    "energy of G(z) in place of x̂": lambda prior, operator, y, weight, deviation, z: TRUE(
        prior, operator, y, 0.0, deviation, z
    )
    + weight * prior.energy(prior.generator(z)),
    "the adjoint in place of the inverse": lambda prior, operator, y, weight, deviation, z: TRUE(
        prior, operator, y, 0.0, deviation, z
    )
    + weight * prior.energy(prior.generator(z) + operator.adjoint(y - operator.apply(prior.generator(z)))),
}  # fmt: skip
TRUE = sampler._potential


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_tells_wrong_potentials(mutant, monkeypatch):
    case = case_of("pooling")
    monkeypatch.setattr(sampler, "_potential", MUTANTS[mutant])
    sampler._restore.clear_cache()
    restored = run(case, CONFIG)
    sampler._restore.clear_cache()
    reject(gaussian_test(restored.latents[0], *latent_law(case, CONFIG)))


REFINED = RestorationConfig(restarts=4096, num_steps=0, refinement_steps=9, refinement_step_size=0.3, temperature=0.5)


def null_law(case, config):
    """Coordinates of the null space, and the law of the refinement in them, started at A⁺y."""
    basis = np.linalg.svd(case.a)[2][np.linalg.matrix_rank(case.a, tol=1e-4) :].T
    precision = basis.T @ np.diag(PRECISION) @ basis
    start = case.inverse @ case.y.ravel()
    mode = np.linalg.solve(precision, basis.T @ (PRECISION * (MEAN - start)))
    size = basis.shape[1]
    move = Move([config.refinement_step_size] * size, precision, mode, config.temperature)
    law = exact_law([move] * config.refinement_steps, np.zeros(size), np.zeros((size, size)))[:2]
    return basis, start, law


def refine(case, config, prior=PRIOR):
    prior = Prior(None, quadratic, jnp.zeros(SHAPE))
    restored = restoration.restore(jax.random.key(8), prior, case.operator, jnp.asarray(case.y)[None], config)
    return np.asarray(restored.samples[0].reshape(-1, 16), np.float64)


def test_the_refinement_is_langevin_in_the_null_space(case):
    x = refine(case, REFINED)
    basis, start, law = null_law(case, REFINED)
    accept(gaussian_test((x - start) @ basis, *law))
    np.testing.assert_allclose(x @ case.a.T, np.tile(case.y.ravel(), (4096, 1)), atol=1e-5)
    other = null_law(case, dataclasses.replace(REFINED, temperature=0.6))[2]
    reject(gaussian_test((x - start) @ basis, *other))


def test_the_refinement_has_an_energy_of_its_own():
    case, config = case_of("mask"), dataclasses.replace(REFINED, restarts=3)
    measured = jnp.asarray(case.y)[None]
    own = Prior(None, lambda x: jnp.sum(x) ** 4, jnp.zeros(SHAPE), quadratic)
    found = restoration.restore(jax.random.key(8), own, case.operator, measured, config)
    np.testing.assert_allclose(found.samples[0].reshape(-1, 16), refine(case, config), atol=1e-5)
    np.testing.assert_allclose(found.potential[0], np.sum(found.samples[0], (1, 2, 3)) ** 4, rtol=1e-3)


def test_noisy_measurements_are_refined_under_their_likelihood():
    case = case_of("matrix")
    config = dataclasses.replace(REFINED, noise_std=0.8)
    x = refine(case, config)
    curvature = np.diag(PRECISION) + case.a.T @ case.a / 0.8**2
    mode = np.linalg.solve(curvature, PRECISION * MEAN + case.a.T @ case.y.ravel() / 0.8**2)
    start = case.inverse @ case.y.ravel()
    moves = [Move([0.3] * 16, curvature, mode, 0.5)] * 9
    accept(gaussian_test(x, *exact_law(moves, start, np.zeros((16, 16)))[:2]))
    wrong = np.diag(PRECISION) + case.a.T @ case.a / 0.8
    moves = [Move([0.3] * 16, wrong, mode, 0.5)] * 9
    reject(gaussian_test(x, *exact_law(moves, start, np.zeros((16, 16)))[:2]))


def test_the_correction_leaves_what_lies_within_the_noise():
    case = case_of("pooling")
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, SHAPE), jnp.float32)
    misfit = case.y - np.asarray(case.operator.apply(x))
    size = float(np.sqrt(np.mean(misfit**2)))
    np.testing.assert_array_equal(sampler._estimate(case.operator, x, jnp.asarray(case.y), 1.1 * size), x)
    half = sampler._estimate(case.operator, x, jnp.asarray(case.y), size / np.sqrt(2))
    np.testing.assert_allclose(half, x + 0.5 * case.operator.pseudo_inverse(jnp.asarray(misfit)), atol=1e-6)


@pytest.mark.parametrize("name", ["matrix", "mask"])
def test_the_correction_under_noise_is_the_linear_estimate(name):
    case, variance, noise = case_of(name), 0.3, 0.2
    d = np.random.default_rng(1).standard_normal(case.y.shape)
    found = sampler._correction(case.operator, jnp.asarray(d, jnp.float32), variance, noise)
    covariance = variance * case.a @ case.a.T + noise**2 * np.eye(len(case.a))
    expected = variance * case.a.T @ np.linalg.solve(covariance, d.ravel())
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-4)
    gain = np.trace(case.a @ case.a.T) / len(case.a)
    estimated = sampler._error_variance(case.operator, jnp.asarray(d, jnp.float32), noise)
    np.testing.assert_allclose(estimated, (np.mean(d**2) - noise**2) / gain, rtol=0.4 if name == "matrix" else 1e-5)


@pytest.mark.parametrize("kernel", ["uniform", "anisotropic", "gaussian"])
def test_a_noisy_blurred_image_is_nearer_after_the_correction(kernel):
    """Along singular values that blur has nearly put out a pseudo-inverse would amplify the noise a thousandfold."""
    operator, noise = tasks.Task("deblur", kernel=kernel).operator((16, 16, 1)), 0.05
    keys = jax.random.split(jax.random.key(0), 3)
    start = jax.random.uniform(keys[0], (32, 16, 16, 1), minval=-1.0)
    x = start + 0.3 * jax.random.normal(keys[1], start.shape)
    y = jax.vmap(operator.apply)(x)
    y += noise * jax.random.normal(keys[2], y.shape)
    found = jax.vmap(lambda start, y: sampler._estimate(operator, start, y, noise))(start, y)
    error = lambda a: float(jnp.mean(jnp.square(a - x)))  # noqa: E731
    assert error(found) < 0.95 * error(start)
    inverted = jax.vmap(lambda start, y: operator.consistent(start, y))(start, y)
    assert error(found) < error(inverted)


def test_a_restart_that_is_nan_is_not_kept(monkeypatch):
    chain, config = sampler._chain, RestorationConfig(restarts=3, descent_steps=1, num_steps=1)
    first = jax.random.key_data(mcmc.chain_keys(mcmc.chain_keys(jax.random.key(3), 1)[0], 3))[0]

    def broken(key, *given):
        parts = chain(key, *given)
        bad = (jax.random.key_data(key) == first).all()
        return tuple(jnp.where(bad, jnp.nan, part) for part in parts)

    monkeypatch.setattr(sampler, "_chain", broken)
    for estimate in ("best", "mean"):
        sampler._restore.clear_cache()
        restored = run(case_of("mask"), dataclasses.replace(config, estimate=estimate))
        assert np.isnan(restored.potential[0]).tolist() == [True, False, False]
        assert np.isfinite(restored.images).all()
    sampler._restore.clear_cache()


def test_the_restart_of_the_lowest_potential_is_kept_and_clipped():
    case = case_of("mask")
    config = RestorationConfig(restarts=5, descent_steps=3, num_steps=2)
    restored = run(case, config)
    best = int(np.argmin(restored.potential[0]))
    expected = jnp.clip(restored.samples[0, best], -1, 1)  # known pixels are in range: only the others are clipped
    np.testing.assert_allclose(restored.images[0], expected, atol=1e-6)
    z = restored.latents[0, best]
    expected = restoration.latent_potential(PRIOR, case.operator, jnp.asarray(case.y), config)(z)
    np.testing.assert_allclose(restored.potential[0, best], expected, rtol=1e-5)


def test_the_mean_of_the_restarts_is_another_estimate():
    case = case_of("mask")
    config = RestorationConfig(restarts=5, descent_steps=3, num_steps=2, estimate="mean")
    restored = run(case, config)
    np.testing.assert_allclose(restored.images[0], jnp.clip(restored.samples[0].mean(0), -1, 1), atol=1e-6)
    assert float(restored.consistency[0]) < 1e-5
    np.testing.assert_allclose(case.operator.apply(restored.images[0]), case.y, atol=1e-6)


def test_clipping_keeps_the_measurement():
    operator = OPERATORS["pooling"]
    truth = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, SHAPE), jnp.float32)
    y, start = operator.apply(truth), 3.0 * jnp.asarray(np.random.default_rng(3).standard_normal(SHAPE), jnp.float32)
    start = operator.consistent(start, y)
    image = sampler._into_range(operator, start, y, 0.0)
    assert float(jnp.abs(image).max()) <= 1.0
    plain = jnp.clip(start, -1, 1)
    missed = lambda x: float(jnp.abs(operator.apply(x) - y).max())  # noqa: E731
    assert missed(image) < 0.1 * missed(plain)
    assert float(jnp.linalg.norm(image - truth)) <= float(jnp.linalg.norm(plain - truth))


def test_the_step_size_is_found_from_the_curvature():
    case = case_of("pooling")
    curvature, _ = quadratic_potential(case, CONFIG)
    potential = restoration.latent_potential(PRIOR, case.operator, jnp.asarray(case.y), CONFIG)
    found = sampler._step_size(potential, jnp.ones(LATENT), None)
    np.testing.assert_allclose(found, 0.5 / np.linalg.eigvalsh(curvature).max(), rtol=0.02)


def test_the_refinement_of_a_piecewise_linear_energy_stays_finite():
    """It has no curvature: the step comes from the slope, and no drift is longer than the noise."""
    case, slope = case_of("matrix"), 50.0
    prior = Prior(None, lambda x: slope * jnp.sum(jnp.abs(x)), jnp.zeros(SHAPE))
    config = RestorationConfig(restarts=512, refinement_steps=1)
    x = restoration.restore(jax.random.key(0), prior, case.operator, jnp.asarray(case.y)[None], config).samples[0]
    start = case.inverse @ case.y.ravel()
    moved = (np.asarray(x).reshape(-1, 16) - start) @ np.linalg.svd(case.a)[2][5:].T
    step = 0.5 / slope**2
    np.testing.assert_allclose(moved.std(0), np.sqrt(2 * step), rtol=0.2)


def test_descent_alone_finds_the_mode():
    case = case_of("pooling")
    config = dataclasses.replace(CONFIG, restarts=2, descent_steps=600, num_steps=0)
    _, mode = quadratic_potential(case, config)
    np.testing.assert_allclose(run(case, config).latents[0], np.tile(mode, (2, 1)), atol=2e-3)


def test_an_image_does_not_depend_on_its_batch():
    case, config = case_of("mask"), RestorationConfig(restarts=5, descent_steps=3, num_steps=2)
    y = jnp.stack([case.y, 0.5 * case.y])
    both = restoration.restore(jax.random.key(3), PRIOR, case.operator, y, config)
    np.testing.assert_allclose(both.samples[0], run(case, config).samples[0], atol=1e-5)
    assert float(jnp.abs(both.latents[0, 0] - both.latents[0, 1]).max()) > 0.1  # restarts differ


def test_batches_bound_the_memory_and_change_no_draw():
    case, config, told = case_of("mask"), RestorationConfig(restarts=2, descent_steps=3, num_steps=2), []
    y = jnp.stack([case.y, 0.5 * case.y, -case.y])
    whole = restoration.restore(jax.random.key(3), PRIOR, case.operator, y, config)
    parts = restoration.restore(jax.random.key(3), PRIOR, case.operator, y, config, batch_size=2, progress=told.append)
    assert told == [0, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_progress_is_told_of_what_is_there(monkeypatch):
    """Dispatch returns before anything is computed: a slow program must not have been told of as done."""
    log, inner = [], sampler._restore

    def slow(*given):
        restored = inner(*given)
        slept = lambda x: (time.sleep(0.2), log.append("computed"), x)[2]  # noqa: E731
        return jax.jit(lambda r: jax.tree.map(lambda a: jax.pure_callback(slept, a, a), r))(restored)

    monkeypatch.setattr(sampler, "_restore", slow)
    case, config = case_of("mask"), RestorationConfig(restarts=2, descent_steps=1, num_steps=1)
    restoration.restore(
        jax.random.key(3), PRIOR, case.operator, jnp.stack([case.y] * 2), config, batch_size=1, progress=log.append
    )
    leaves = ["computed"] * len(restoration.Restored._fields)
    assert log == [0, *leaves, 1, *leaves, 1]


def test_nothing_to_restore():
    with pytest.raises(ValueError, match="no measurements to restore"):
        restoration.restore(jax.random.key(0), PRIOR, OPERATORS["pooling"], jnp.zeros((0, 2, 2, 1)))


def test_measurements_of_another_shape():
    with pytest.raises(ValueError, match=r"measurements of \(3, 3, 1\): this operator's are \(2, 2, 1\)"):
        restoration.restore(jax.random.key(0), PRIOR, OPERATORS["pooling"], jnp.zeros((1, 3, 3, 1)))
    with pytest.raises(ValueError, match="not one of images of"):
        restoration.restore(jax.random.key(0), PRIOR, restoration.average_pooling(8, 2), jnp.zeros((1, 4, 4, 1)))


def test_without_a_generator_and_without_a_refinement_nothing_would_be_restored():
    prior = PRIOR._replace(generator=None)
    with pytest.raises(ValueError, match="no generator, so refinement_steps=0 restores nothing"):
        restoration.restore(jax.random.key(0), prior, OPERATORS["pooling"], jnp.zeros((1, 2, 2, 1)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"estimate": "x"}, "estimate='x': there are best, mean"),
        ({"restarts": 1.5}, "restarts=1.5: give a whole number"),
        ({"num_steps": 1e3}, "num_steps=1000.0: give a whole number"),
        ({"descent_steps": True}, "descent_steps=True: give a whole number"),
        ({"refinement_steps": "9"}, "refinement_steps='9': give a whole number"),
    ],
)
def test_settings_that_are_none(wrong, message):
    with pytest.raises(ValueError, match=message):
        RestorationConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"restarts": 0}, {"likelihood_std": 0.0}, {"noise_std": -1.0}, {"step_size": 0.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* is out of range"):
        RestorationConfig(**wrong)


def test_the_snippet_of_the_documentation():
    text = (ROOT / "docs/how-to/restore.md").read_text()
    (snippet,) = [block.partition("```")[0] for block in text.split("```python\n") if "restoration.Prior(" in block]
    images = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, (16, 8, 8, 1)), jnp.float32)
    names = {"jax": jax, "jnp": jnp, "images": images}
    exec(compile(snippet, "restore.md", "exec"), names)  # noqa: S102
    known = restoration.box_mask(8)
    np.testing.assert_allclose(names["restored"][:, known], images[:, known], atol=1e-6)
    assert names["restored"].shape == (16, 8, 8, 1)
