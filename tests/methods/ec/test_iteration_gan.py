"""One training iteration of the energy-calibrated GAN, against its losses written down again (see `iterations`)."""

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

from jebm.methods import ECGANConfig
from jebm.methods.ec import gan as ec_gan
from jebm.methods.ec import vae_networks
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.networks.spectral_norm import iterate as power_iteration
from jebm.networks.spectral_norm import normalize

SEED = 0
B, SHAPE, LATENT = 5, (8, 8, 1), 3
TAU, S, K = 2e-3, 0.01, 2
CONFIG = ECGANConfig(
    image_size=8, channels=1, latent_size=LATENT, generator_width=1, discriminator_layers=((3, 1),),
    energy_layers=((4, 1),), head_width=4, learning_rate=3e-3, energy_learning_rate=7e-4, ema_decay=0.15,
    calibration=CalibrationConfig(
        num_steps=K, step_size=S, temperature=TAU, tolerance=0.2, dual_initial=5.0, dual_rate=0.3
    ),
)  # fmt: skip


def squared(x):
    return jnp.sum(x**2, axis=(1, 2, 3))


def generator_of(params, vectors, z):
    """G under the statistics of its own batch; the collection of running ones is not read."""
    module = ec_gan.network(CONFIG)
    stats = jax.eval_shape(module.init, jax.random.key(0), z)["batch_stats"]
    stats = jax.tree.map(lambda a: jnp.ones(a.shape), stats)
    variables = {"params": normalize(params, vectors), "batch_stats": stats}
    return module.apply(variables, z, train=True, mutable=["batch_stats"])[0]


def score_of(model, params, vectors):
    return lambda x: model.network.apply({"params": normalize(params, vectors)}, x)


@jax.jit
def written(key, state, images):
    """The three gradients, all metrics and all singular vectors of one iteration."""
    latent_key, chain_key = jax.random.split(key)
    z = jax.random.normal(latent_key, (B, LATENT))
    energy, critic = ec_gan.energy_model(CONFIG), ec_gan.discriminator(CONFIG)
    vectors = {
        "generator": power_iteration(state.generator.params, state.spectral),
        "discriminator": power_iteration(state.discriminator.trained.params, state.discriminator.spectral),
        "energy": power_iteration(state.energy.trained.params, state.energy.spectral),
    }
    f = score_of(energy, state.energy.trained.params, vectors["energy"])
    generated = generator_of(state.generator.params, vectors["generator"], z)
    calibrated = calibrated_by(f, chain_key, generated, CONFIG.calibration)

    def generator_loss(params):
        samples = generator_of(params, vectors["generator"], z)
        adversarial = -jnp.mean(score_of(critic, state.discriminator.trained.params, vectors["discriminator"])(samples))
        distance = jnp.mean(squared(calibrated - samples))
        return adversarial + state.dual * distance, (adversarial, distance)

    def hinge_loss(params):
        score = score_of(critic, params, vectors["discriminator"])
        return jnp.mean(jnp.maximum(0, 1 - score(images))) + jnp.mean(jnp.maximum(0, 1 + score(generated)))

    def contrast(params):
        f = score_of(energy, params, vectors["energy"])
        return (jnp.mean(f(images)) - jnp.mean(f(calibrated))) / TAU

    gradient, (adversarial, distance) = jax.grad(generator_loss, has_aux=True)(state.generator.params)
    hinge, of_discriminator = jax.value_and_grad(hinge_loss)(state.discriminator.trained.params)
    gradients = {
        "generator": gradient,
        "discriminator": of_discriminator,
        "energy": jax.grad(contrast)(state.energy.trained.params),
    }
    metrics = {
        "generator": adversarial, "discriminator": hinge, "calibration": distance,
        "energy_data": jnp.mean(f(images)), "energy_negative": jnp.mean(f(calibrated)),
        **slopes(f, images, calibrated),
        "chain_displacement": jnp.sqrt(distance / 64), "saturated_pixels": outside(calibrated),
    }  # fmt: skip
    return gradients, metrics, vectors


@pytest.fixture(scope="module")
def case():
    """Two iterations; the discriminator's scores are near 1 in the first and near -1 in the second.

    So each half of the hinge is at its kink once.
    """
    method = ec_gan.build(CONFIG)
    images = [images_of(SHAPE, B, SEED + i) for i in range(2)]
    keys = [jax.random.key(SEED + i) for i in range(2)]
    before, after, metrics, expected = [], [], [], []
    state, update = drawn_state(method, images[0], SEED)._replace(dual=jnp.float32(5.0)), jax.jit(method.update)
    for i, level in enumerate((1.0, -1.0)):
        params = state.discriminator.trained.params
        params = {**params, "head": {**params["head"], "fc_2": {**params["head"]["fc_2"], "bias": jnp.array([level])}}}
        state = state._replace(
            discriminator=state.discriminator._replace(trained=state.discriminator.trained._replace(params=params))
        )
        before.append(state)
        expected.append(written(keys[i], state, images[i]))
        state, found = update(keys[i], state, images[i])
        after.append(state)
        metrics.append(found)
    return SimpleNamespace(before=before, after=after, metrics=metrics, expected=expected, images=images)


def of_state(state):
    """(parameters, optimiser, learning rate) of each network."""
    return {
        "generator": (state.generator.params, state.generator.optimizer, 3e-3),
        "discriminator": (state.discriminator.trained.params, state.discriminator.trained.optimizer, 3e-3),
        "energy": (state.energy.trained.params, state.energy.trained.optimizer, 7e-4),
    }


def test_the_gradients_are_those_of_the_written_losses(case):
    for after, (gradients, _, _) in zip(case.after, case.expected, strict=True):
        for name, (_, optimizer, _) in of_state(after).items():
            assert_trees(optimizer[0].mu, gradients[name], 2e-4)  # the first moment, without memory


def test_the_metrics_are_what_they_are_called(case):
    for after, metrics, (gradients, expected, _) in zip(case.after, case.metrics, case.expected, strict=True):
        assert_metrics(metrics, expected | {
            "dual": after.dual,
            "generator_gradient_norm": norm(gradients["generator"]),
            "energy_gradient_norm": TAU * norm(gradients["energy"]),
        }, 1e-4)  # fmt: skip


def test_the_weights_move_by_adam_at_the_rate_of_their_own(case):
    first, second = (of_state(state) for state in case.after)
    middle = of_state(case.before[1])
    for name, (params, _, rate) in of_state(case.before[0]).items():
        assert_adam(params, first[name][0], [first[name][1][0].mu], rate, 0.0, 0.9)
        if name != "discriminator":  # whose bias was set in between
            both = [first[name][1][0].mu, second[name][1][0].mu]
            assert_adam(params, second[name][0], both, rate, 0.0, 0.9)
        ends = jax.device_get((middle[name][0], second[name][0]))
        assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), *ends))) > 0.5 * rate


def test_the_multiplier_ascends(case):
    for before, after, (_, metrics, _) in zip(case.before, case.after, case.expected, strict=True):
        excess = float(metrics["calibration"]) - 0.2
        assert excess > 0.1
        np.testing.assert_allclose(after.dual, before.dual + 0.3 * excess, rtol=1e-5)


def test_the_singular_vectors_make_one_iteration(case):
    for after, (_, _, vectors) in zip(case.after, case.expected, strict=True):
        found = after.spectral, after.discriminator.spectral, after.energy.spectral
        for name, actual in zip(("generator", "discriminator", "energy"), found, strict=True):
            assert_trees(actual, vectors[name], 1e-4)


def test_the_average_follows_the_weights(case):
    """Its decay is (1 + t)/(10 + t) at first, 0.1 and 2/11, but at most the configured 0.15."""
    for before, after, decay in zip(case.before, case.after, (0.1, 0.15), strict=True):
        assert_moving_average(before.generator.ema, after.generator.params, after.generator.ema, decay)


# --- after training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(case):
    method = ec_gan.build(CONFIG)

    def outputs(state):
        key, images = jax.random.key(SEED), case.images[0]
        outputs = {"generate": method.generate(key, state, 4), "energy": jax.vmap(method.energy(state))(images)}
        return outputs | method.scores(jax.random.key(SEED + 1), state, images)

    return jax.jit(outputs)


def test_who_reads_what(case, read):
    scores = {"calibration_distance", "calibration_gap", "energy_gap"}
    assert readers(read, case.after[-1], SEED) == {
        "generator.params": set(),
        "generator.ema": scores | {"generate"},
        "generator.optimizer": set(),
        "spectral": scores | {"generate"},
        "discriminator.trained.params": set(),
        "discriminator.trained.optimizer": set(),
        "discriminator.spectral": set(),
        "energy.trained.params": scores | {"energy"},
        "energy.trained.optimizer": set(),
        "energy.spectral": scores | {"energy"},
        "dual": set(),
    }


def test_what_they_read(case, read):
    state, images, found = case.after[-1], case.images[0], read(case.after[-1])
    f = score_of(ec_gan.energy_model(CONFIG), state.energy.trained.params, state.energy.spectral)

    @jax.jit
    def expected():
        chain_key, latent_key = jax.random.split(jax.random.key(SEED + 1))
        generated = ec_gan.generate(CONFIG, latent_key, state, B)
        calibrated = calibrated_by(f, chain_key, generated, CONFIG.calibration)
        distance = jnp.mean(squared(calibrated - generated))
        return {
            "energy": f(images) / TAU,
            "calibration_distance": distance,
            "calibration_gap": distance - K * S * 64,
            "energy_gap": jnp.mean(f(generated)) - jnp.mean(f(images)),
        }

    generated = found.pop("generate")
    assert_metrics(found, expected(), 2e-4)
    z = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(SEED), i), (LATENT,)) for i in range(4)])
    prior = jax.random.normal(jax.random.key(0), (vae_networks.STANDING_LATENTS, LATENT))
    together = jax.jit(generator_of)(state.generator.ema, state.spectral, jnp.concatenate([prior, z]))
    # four more latents and the biased variance change the statistics of 256 by little
    np.testing.assert_allclose(generated, together[-4:], atol=0.05)
