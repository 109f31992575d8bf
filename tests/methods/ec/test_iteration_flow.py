"""One training iteration of the energy-calibrated flow, against its losses written down again (see `iterations`)."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.iterations import (
    assert_adam,
    assert_metrics,
    assert_moving_average,
    assert_trees,
    calibrated_by,
    drawn_state,
    images_of,
    norm,
    outside,
    readers,
    slopes,
)

from jebm.methods import ECFlowConfig
from jebm.methods.ec import flow as ec_flow
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.networks.spectral_norm import iterate as power_iteration
from jebm.networks.spectral_norm import normalize

SEED = 0
B, SHAPE, D = 5, (2, 2, 1), 4
ALPHA, TAU, S, K = 0.08, 2e-3, 0.01, 2
CONFIG = ECFlowConfig(
    image_size=2, channels=1, num_scales=1, num_steps=1, width=4, alpha=ALPHA, energy_layers=((4, 1),),
    energy_head_width=4, flow_learning_rate=3e-3, energy_learning_rate=7e-4, gradient_clip=0.02, ema_decay=0.15,
    likelihood_tolerance=0.4,
    calibration=CalibrationConfig(
        num_steps=K, step_size=S, temperature=TAU, tolerance=0.01, dual_initial=5.0, dual_rate=0.3
    ),
)  # fmt: skip
LIKELIHOOD = dataclasses.replace(CONFIG, variant="likelihood")


def bits_of(params, u):
    """``-log₂ P`` per value of the level that u lies in: -log₂ p(u) and log₂ 256."""
    p = ALPHA + (1 - 2 * ALPHA) * u
    z, log_determinant = ec_flow.network(CONFIG).apply({"params": params}, jnp.log(p / (1 - p)))
    log_slope = jnp.sum(jnp.log((1 - 2 * ALPHA) / (p * (1 - p))), (1, 2, 3))
    log_p = -jnp.sum(z**2, 1) / 2 - D / 2 * np.log(2 * np.pi) + log_determinant + log_slope
    return jnp.mean(-log_p / np.log(2) / D + 8)


def samples_of(params, z):
    logits, _ = ec_flow.network(CONFIG).apply({"params": params}, z, method="inverse")
    u = (1 / (1 + jnp.exp(-logits)) - ALPHA) / (1 - 2 * ALPHA)
    return (u - 0.5 / 256) * 256 / 127.5 - 1  # level k is at (k + 1/2)/256 in u and at k/127.5 - 1 in images


def energy_of(params, vectors):
    module = ec_flow.energy_model(CONFIG).network
    return lambda x: module.apply({"params": normalize(params, vectors)}, x)


def squared(x):
    return jnp.sum(x**2, axis=(1, 2, 3))


@functools.partial(jax.jit, static_argnums=0)
def written(config, key, state, images):
    """The gradients of flow and energy, all metrics, and the energy's singular vectors."""
    noise_key, latent_key, chain_key = jax.random.split(key, 3)
    u = (jnp.round((images + 1) / 2 * 255) + jax.random.uniform(noise_key, images.shape)) / 256
    z = jax.random.normal(latent_key, (B, D))
    vectors = power_iteration(state.energy.trained.params, state.energy.spectral)
    f = energy_of(state.energy.trained.params, vectors)
    generated = samples_of(state.flow.params, z)
    calibrated = calibrated_by(f, chain_key, generated, CONFIG.calibration)

    def of_samples(params, x):
        return bits_of(params, jnp.clip((127.5 * (x + 1) + 0.5) / 256, 0, 1))

    def loss(params):
        bits, distance = bits_of(params, u), jnp.mean(squared(calibrated - samples_of(params, z)))
        if config.variant == "sample":
            constraint = distance
        else:  # the likelihood of calibrated samples rises, that of the flow's own samples is a constant
            constraint = of_samples(params, calibrated) - of_samples(state.flow.params, generated)
        return bits + state.dual * constraint, (bits, constraint, distance)

    def contrast(params):
        f = energy_of(params, vectors)
        return (jnp.mean(f(images)) - jnp.mean(f(calibrated))) / TAU

    gradient, (bits, constraint, distance) = jax.grad(loss, has_aux=True)(state.flow.params)
    gradients = {"flow": gradient, "energy": jax.grad(contrast)(state.energy.trained.params)}
    metrics = {
        "bits_per_dim": bits, "constraint": constraint, "calibration": distance,
        "energy_data": jnp.mean(f(images)), "energy_negative": jnp.mean(f(calibrated)),
        **slopes(f, images, calibrated),
        "chain_displacement": jnp.sqrt(distance / D), "saturated_pixels": outside(calibrated),
    }  # fmt: skip
    return gradients, metrics, vectors


def levels(seed):
    return jnp.round((images_of(SHAPE, B, seed) + 1) * 127.5) / 127.5 - 1


def two_iterations(config):
    method, images = ec_flow.build(config), [levels(SEED + i) for i in range(2)]
    states, metrics, expected = [drawn_state(method, images[0], SEED)._replace(dual=jnp.float32(5.0))], [], []
    update = jax.jit(method.update)
    for i, key in enumerate(jax.random.split(jax.random.key(SEED), 2)):
        expected.append(written(config, key, states[-1], images[i]))
        state, found = update(key, states[-1], images[i])
        states.append(state)
        metrics.append(found)
    return SimpleNamespace(config=config, states=states, metrics=metrics, expected=expected, images=images)


@pytest.fixture(scope="module")
def sample():
    return two_iterations(CONFIG)


@pytest.fixture(scope="module")
def likelihood():
    return two_iterations(LIKELIHOOD)


@pytest.fixture(scope="module", params=["sample", "likelihood"])
def case(request):
    return request.getfixturevalue(request.param)


def clipped(gradients):
    return jax.tree.map(lambda g: np.asarray(g) * min(1, CONFIG.gradient_clip / norm(gradients)), gradients)


def gradients_of(states):
    """Adam's gradients of two steps, from its first moments; of flow and energy."""
    first, second = jax.device_get([state.flow.optimizer[1][0].mu for state in states[1:]])
    flow = jax.tree.map(lambda a: a / 0.1, first), jax.tree.map(lambda a, b: (b - 0.9 * a) / 0.1, first, second)
    return flow, [state.energy.trained.optimizer[0].mu for state in states[1:]]


def test_the_gradients_are_those_of_the_written_losses(case):
    flow, energy = gradients_of(case.states)
    for i, (expected, _, _) in enumerate(case.expected):
        assert_trees(flow[i], clipped(expected["flow"]), 2e-4)
        assert_trees(energy[i], expected["energy"], 2e-4)


def test_the_metrics_are_what_they_are_called(case):
    for after, metrics, (gradients, expected, _) in zip(case.states[1:], case.metrics, case.expected, strict=True):
        assert_metrics(metrics, expected | {
            "dual": after.dual,
            "gradient_norm": norm(gradients["flow"]),  # before it is clipped
            "energy_gradient_norm": TAU * norm(gradients["energy"]),
        }, 2e-4)  # fmt: skip


def test_the_weights_move_by_adam_at_the_rate_of_their_own(case):
    first, _, last = case.states
    flow, energy = gradients_of(case.states)
    assert_adam(first.flow.params, last.flow.params, flow, 3e-3, 0.9, 0.999)
    assert_adam(first.energy.trained.params, last.energy.trained.params, energy, 7e-4, 0.0, 0.9)


def test_the_multiplier_ascends(case):
    tolerance = 0.01 if case.config.variant == "sample" else 0.4
    for before, after, (_, metrics, _) in zip(case.states, case.states[1:], case.expected, strict=False):
        moved = 0.3 * (float(metrics["constraint"]) - tolerance)
        np.testing.assert_allclose(after.dual, before.dual + moved, atol=1e-5 + 1e-4 * abs(moved))
        assert abs(moved) > 1e-3


def test_the_singular_vectors_make_one_iteration(case):
    for state, (_, _, vectors) in zip(case.states[1:], case.expected, strict=True):
        assert_trees(state.energy.spectral, vectors, 1e-4)


def test_the_average_follows_the_weights(case):
    """Its decay is (1 + t)/(10 + t) at first, 0.1 and 2/11, but at most the configured 0.15."""
    for i, decay in enumerate((0.1, 0.15)):
        before, after = (state.flow for state in case.states[i : i + 2])
        assert_moving_average(before.ema, after.params, after.ema, decay)


# --- after training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(sample):
    method, images = ec_flow.build(CONFIG), sample.images[0]

    def outputs(state):
        key = jax.random.key(SEED)
        return {
            "generate": method.generate(key, state, 4),
            "energy": jax.vmap(method.energy(state))(images),
            "reconstruct": method.reconstruct(key, state, images),
        } | method.scores(jax.random.key(SEED + 1), state, images)

    return jax.jit(outputs)


def test_who_reads_what(sample, read):
    calibrated = {"calibration_distance", "calibration_gap"}
    likelihoods = {"bits_per_dim", "inverse_lipschitz", "generate"} | calibrated
    changed = readers(read, sample.states[-1], SEED)
    changed["flow.ema"] -= {"reconstruct"}  # the images again, up to rounding
    assert changed == {
        "flow.params": set(),
        "flow.ema": likelihoods,
        "flow.optimizer": set(),
        "energy.trained.params": {"energy"} | calibrated,
        "energy.trained.optimizer": set(),
        "energy.spectral": {"energy"} | calibrated,
        "dual": set(),
    }


def test_what_they_read(sample, read):
    state, images, found = sample.states[-1], sample.images[0], read(sample.states[-1])

    @jax.jit
    def expected():
        noise_key, chain_key, latent_key = jax.random.split(jax.random.key(SEED + 1), 3)
        f = energy_of(state.energy.trained.params, state.energy.spectral)
        u = (jnp.round((images + 1) / 2 * 255) + jax.random.uniform(noise_key, images.shape)) / 256
        draws = lambda key, n: jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (D,)) for i in range(n)])  # noqa: E731
        generated = jnp.clip(samples_of(state.flow.ema, draws(latent_key, B)), -1, 1)
        calibrated = calibrated_by(f, chain_key, generated, CONFIG.calibration)
        inverse = lambda z: ec_flow.network(CONFIG).apply({"params": state.flow.ema}, z[None], method="inverse")[0][0]  # noqa: E731
        jacobian = jax.jacrev(inverse)(jax.random.normal(latent_key, (D,))).reshape(D, D)
        distance = jnp.mean(squared(calibrated - generated))
        return {
            "generate": jnp.clip(samples_of(state.flow.ema, draws(jax.random.key(SEED), 4)), -1, 1),
            "energy": f(images) / TAU,
            "bits_per_dim": bits_of(state.flow.ema, u),
            "calibration_distance": distance,
            "calibration_gap": distance - K * S * D,
        }, jacobian

    values, jacobian = expected()
    lipschitz = float(found.pop("inverse_lipschitz"))
    largest = np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False)[0]
    assert 0.98 * largest < lipschitz < 1.0001 * largest  # power iterations reach it from below
    np.testing.assert_allclose(found.pop("reconstruct"), images, atol=1e-4)
    assert_metrics(found, values, 2e-4)


def test_the_bits_are_those_of_the_density_of_levels(sample):
    """``-log₂ (p(u)/256^D)/D`` with p by the whole map's Jacobian, in float64."""
    params = sample.states[0].flow.params

    def latents(u):
        p = ALPHA + (1 - 2 * ALPHA) * u.reshape(1, *SHAPE)
        return ec_flow.network(CONFIG).apply({"params": params}, jnp.log(p) - jnp.log1p(-p))[0][0]

    u = jnp.asarray(np.random.default_rng(SEED).uniform(0.1, 0.9, (3, D)), jnp.float32)
    z, jacobians = jax.jit(jax.vmap(lambda u: (latents(u), jax.jacrev(latents)(u))))(u)
    log_p = -0.5 * np.sum(np.asarray(z, np.float64) ** 2, 1) - D / 2 * np.log(2 * np.pi)
    log_p += np.linalg.slogdet(np.asarray(jacobians, np.float64))[1]
    expected = -(log_p - D * np.log(256)) / np.log(2) / D
    np.testing.assert_allclose(ec_flow.bits_per_dimension(CONFIG, params, u.reshape(3, *SHAPE)), expected, rtol=1e-5)
