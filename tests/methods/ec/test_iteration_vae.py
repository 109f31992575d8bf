"""One training iteration of the energy-calibrated VAE, against its losses written down again.

The networks and their spectral normalisation are the library's, the rest is not: no loss, chain, optimiser or average
of the family is called for what is expected.
"""

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
    chain,
    drawn_state,
    images_of,
    norm,
    outside,
    readers,
    slopes,
)

from jebm import losses
from jebm.methods import ECVAEConfig
from jebm.methods.ec import vae as ec_vae
from jebm.methods.ec import vae_networks
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.posterior import PosteriorCalibrationConfig, calibrate_posterior
from jebm.networks.spectral_norm import iterate as power_iteration
from jebm.networks.spectral_norm import normalize

SEED = 0
B, SHAPE, LATENT = 5, (8, 8, 1), 3
BETA, TAU, S, K = 0.7, 2e-3, 0.01, 2


def config_of(**options):
    chain_options = options.pop("calibration", {})
    return ECVAEConfig(
        image_size=8, channels=1, latent_size=LATENT, encoder_width=2, decoder_width=1, energy_layers=((4, 1),),
        energy_head_width=4, energy_scales=1, kl_weight=BETA, vae_learning_rate=3e-3, energy_learning_rate=7e-4,
        b1=0.3, b2=0.8, ema_decay=0.15,
        calibration=CalibrationConfig(
            num_steps=K, step_size=S, temperature=TAU, tolerance=0.2, dual_initial=5.0, dual_rate=0.3, **chain_options
        ),
        **options,
    )  # fmt: skip


def draws_of(config, seed):
    draws, rng = ec_vae.draw(config, jax.random.key(seed), B), np.random.default_rng(seed)
    noise = lambda: jnp.asarray(rng.standard_normal((B, K, *SHAPE)), jnp.float32)  # noqa: E731
    return draws._replace(calibration_noise=noise(), negative_noise=noise())


def params_of(state):
    return {name: network.params for name, network in state.vae.items()}


def squared(x):
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def energy_of(config, params, vectors):
    network = ec_vae.energy_model(config).network
    return lambda x: network.apply({"params": normalize(params, vectors) if vectors else params}, x)


def primal(config, draws, state, images, vectors):
    """Loss of encoder and decoder: its gradient, and everything that it passes on."""
    nets = ec_vae.networks(config)
    dual, posterior_dual = state.dual if config.calibrated_posterior else (state.dual, 0.0)

    def decode(vae, stats, spectral, z):
        spectral = power_iteration(vae["decoder"], spectral)
        variables = {"params": normalize(vae["decoder"], spectral), "batch_stats": stats}
        x, updated = nets.decoder.apply(variables, z, train=True, mutable=["batch_stats"])
        return x, updated["batch_stats"], spectral

    def loss(vae):
        stats, spectral = state.batch_stats, state.vae_spectral["decoder"]
        variables = {"params": vae["encoder"], "batch_stats": stats["encoder"]}
        (mu, logvar), encoder = nets.encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        z = mu + jnp.sqrt(jnp.exp(logvar)) * draws.posterior
        reconstructed, decoder, spectral = decode(vae, stats["decoder"], spectral, z)
        if config.reconstruction == "squared_error":
            errors = squared(reconstructed - images)
        else:  # which is not symmetric
            errors = jnp.stack([losses.watson_dct(*pair) for pair in zip(reconstructed, images, strict=True)])
        terms = {
            "reconstruction": jnp.mean(errors),
            "kl": jnp.mean(jnp.sum(mu**2 + jnp.exp(logvar) - 1 - logvar, 1)) / 2,
        }
        total = terms["reconstruction"] + BETA * terms["kl"]
        if config.calibrated_posterior:
            constant = jax.lax.stop_gradient
            moved = constant(posterior_chain(nets, config, draws, constant(vae), spectral, images, constant(z)))
            terms["posterior_calibration"] = jnp.mean(squared(moved - z))
            total += posterior_dual * terms["posterior_calibration"]
        generated, decoder, spectral = decode(vae, decoder, spectral, draws.latent)
        start = jax.lax.stop_gradient(generated)
        f = energy_of(config, state.energy.trained.params, vectors)
        calibrated = chain(f, start, draws.calibration_noise, config.calibration)
        terms["calibration"] = jnp.mean(squared(calibrated - generated))
        total += dual * terms["calibration"]
        return total, (terms, {"encoder": encoder["batch_stats"], "decoder": decoder}, spectral, calibrated)

    gradient, (terms, stats, spectral, calibrated) = jax.grad(loss, has_aux=True)(params_of(state))
    return gradient, terms, stats, spectral, calibrated, decode


def posterior_chain(nets, config, draws, vae, spectral, images, z):
    """One step on ``‖x - G(z)‖²/(2σ²) + ½‖z‖²``, σ² = β/2, G under the statistics of the reconstructed batch."""
    step = config.posterior.step_size
    still = lambda z: jnp.zeros(SHAPE)  # noqa: E731
    noise = calibrate_posterior(draws.posterior_key, still, jnp.zeros((B, *SHAPE)), 0 * z, 1.0, config.posterior)
    params = normalize(vae["decoder"], spectral)
    zeros = jax.tree.map(jnp.zeros_like, ec_vae_stats(nets))
    _, updated = nets.decoder.apply({"params": params, "batch_stats": zeros}, z, train=True, mutable=["batch_stats"])
    stats = jax.tree.map(lambda a: 10 * a, updated["batch_stats"])  # a tenth of what a batch has is kept

    def potential(z):
        error = nets.decoder.apply({"params": params, "batch_stats": stats}, z) - images
        return jnp.sum(error**2) / BETA + jnp.sum(z**2) / 2

    return z - step / 2 * jax.grad(potential)(z) + noise


def ec_vae_stats(nets):
    return jax.eval_shape(nets.decoder.init, jax.random.key(0), jnp.zeros((1, LATENT)))["batch_stats"]


def contrastive(config, draws, state, updated_vae, images):
    """Gradient of the energy's loss, and all metrics; ``updated_vae`` are the weights after the primal step."""
    vectors = power_iteration(state.energy.trained.params, state.energy.spectral) if config.spectral_norm else {}
    vae_gradient, terms, stats, spectral, negatives, decode = primal(config, draws, state, images, vectors)
    if not config.reuse_negatives:
        generated, decoder, spectral = decode(updated_vae, stats["decoder"], spectral, draws.latent)
        stats = {**stats, "decoder": decoder}
        f = energy_of(config, state.energy.trained.params, vectors)
        negatives = chain(f, generated, draws.negative_noise, config.calibration)

    def loss(params):
        f = energy_of(config, params, vectors)
        on_data, on_negatives = f(images), f(negatives)
        total = jnp.mean(on_data) - jnp.mean(on_negatives)
        total += config.energy_regularization * (jnp.mean(on_data**2) + jnp.mean(on_negatives**2))
        return total / TAU, (jnp.mean(on_data), jnp.mean(on_negatives))

    gradient, (on_data, on_negatives) = jax.grad(loss, has_aux=True)(state.energy.trained.params)
    f = energy_of(config, state.energy.trained.params, vectors)
    metrics = terms | {
        "energy_data": on_data, "energy_negative": on_negatives,
        **slopes(f, images, negatives),
        "chain_displacement": jnp.sqrt(terms["calibration"] / 64), "saturated_pixels": outside(negatives),
    }  # fmt: skip
    return {
        "vae": vae_gradient, "energy": gradient, "metrics": metrics,
        "stats": stats, "spectral": spectral, "vectors": vectors,
    }  # fmt: skip


def two_iterations(config):
    """A start and two iterations: states, metrics, and what the text says of each."""
    images = [images_of(SHAPE, B, SEED + i) for i in range(2)]
    states, expected, metrics = [drawn_state(ec_vae.build(config), images[0], SEED)], [], []
    dual = (jnp.float32(5.0), jnp.float32(4.0)) if config.calibrated_posterior else jnp.float32(5.0)
    states[0] = states[0]._replace(dual=dual)
    step = jax.jit(functools.partial(ec_vae.iterate, config))
    again = jax.jit(functools.partial(contrastive, config))
    for i in range(2):
        draws = draws_of(config, SEED + i)
        state, found = step(draws, states[-1], images[i])
        expected.append(SimpleNamespace(**again(draws, states[-1], params_of(state), images[i])))
        states.append(state)
        metrics.append(found)
    return SimpleNamespace(config=config, states=states, metrics=metrics, expected=expected, images=images)


@pytest.fixture(scope="module")
def plain():
    return two_iterations(config_of(reconstruction="watson_dct"))


@pytest.fixture(scope="module")
def optional():
    """All that is optional at once: calibrated posterior, reused negatives, regularised energy, no spectral norm."""
    return two_iterations(config_of(
        calibrated_posterior=True, energy_regularization=0.4, spectral_norm=False,
        posterior=PosteriorCalibrationConfig(num_steps=1, step_size=0.04, tolerance=0.005, dual_rate=0.6),
        reuse_negatives=True,
    ))  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "optional"])
def case(request):
    return request.getfixturevalue(request.param)


def gradients(states, moments, b1=0.3):
    """Adam's gradients of two steps, from its first moments."""
    first, second = jax.device_get([moments(state) for state in states[1:]])
    one = jax.tree.map(lambda a: a / (1 - b1), first)
    return one, jax.tree.map(lambda a, b: (b - b1 * a) / (1 - b1), first, second)


def vae_moments(state):
    return {name: network.optimizer[0].mu for name, network in state.vae.items()}


def energy_moments(state):
    return state.energy.trained.optimizer[0].mu


def test_the_gradients_are_those_of_the_written_losses(case):
    vae = gradients(case.states, vae_moments)
    energy = gradients(case.states, energy_moments)
    for i, expected in enumerate(case.expected):
        assert_trees(vae[i]["encoder"], expected.vae["encoder"], 2e-4)
        assert_trees(vae[i]["decoder"], expected.vae["decoder"], 2e-4)
        assert_trees(energy[i], expected.energy, 2e-4)


def test_the_metrics_are_what_they_are_called(case):
    for before, after, metrics, expected in zip(
        case.states, case.states[1:], case.metrics, case.expected, strict=False
    ):
        expected.metrics["vae_gradient_norm"] = norm(expected.vae)
        expected.metrics["energy_gradient_norm"] = TAU * norm(expected.energy)
        del before
        duals = after.dual if case.config.calibrated_posterior else (after.dual,)
        expected.metrics |= dict(zip(("dual", "posterior_dual"), duals, strict=False))
        assert_metrics(metrics, expected.metrics, 1e-4)


def test_the_weights_move_by_adam_at_the_rate_of_their_own(case):
    first, _, last = case.states
    vae = gradients(case.states, vae_moments)
    energy = gradients(case.states, energy_moments)
    assert_adam(params_of(first), params_of(last), vae, 3e-3, 0.3, 0.8)
    assert_adam(first.energy.trained.params, last.energy.trained.params, energy, 7e-4, 0.3, 0.8)


def test_the_multipliers_ascend(case):
    settings = case.config.posterior
    for before, after, expected in zip(case.states, case.states[1:], case.expected, strict=False):
        duals = before.dual, after.dual
        if case.config.calibrated_posterior:
            duals, (mu, moved) = zip(*duals, strict=True)
            excess = expected.metrics["posterior_calibration"] - settings.tolerance
            np.testing.assert_allclose(moved, mu + settings.dual_rate * excess, rtol=1e-5)
            assert float(excess) > 0.01
        excess = expected.metrics["calibration"] - 0.2
        np.testing.assert_allclose(duals[1], duals[0] + 0.3 * excess, rtol=1e-5)
        assert float(excess) > 0.1


def test_statistics_and_singular_vectors_see_each_pass_of_a_network_once(case):
    for state, expected in zip(case.states[1:], case.expected, strict=True):
        assert_trees(state.batch_stats, expected.stats, 1e-4)
        assert_trees(state.vae_spectral["decoder"], expected.spectral, 1e-4)
        assert state.vae_spectral["encoder"] == {}
        if case.config.spectral_norm:
            assert_trees(state.energy.spectral, expected.vectors, 1e-4)
        else:
            assert state.energy.spectral == {}


def test_the_average_follows_the_weights(case):
    """Its decay is (1 + t)/(10 + t) at first, 0.1 and 2/11, but at most the configured 0.15."""
    for i, decay in enumerate((0.1, 0.15)):
        for name, before in case.states[i].vae.items():
            after = case.states[i + 1].vae[name]
            assert_moving_average(before.ema, after.params, after.ema, decay)


def test_an_update_draws_independent_numbers(plain, monkeypatch):
    draws = ec_vae.draw(plain.config, jax.random.key(SEED), B)
    data = [draws.calibration_key, draws.negative_key, draws.posterior_key]
    keys = [tuple(np.asarray(jax.random.key_data(key))) for key in data]
    assert len(set(keys)) == 3
    assert not np.any(np.isclose(draws.posterior, draws.latent))
    assert draws.calibration_noise is draws.negative_noise is None
    monkeypatch.setattr(ec_vae, "iterate", lambda config, draws, state, images: (state, draws))
    _, given = ec_vae.build(plain.config).update(jax.random.key(SEED), plain.states[0], plain.images[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_plain(a), _plain(b)), given, draws)


def _plain(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


# --- after training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(plain):
    method = ec_vae.build(config_of())

    def outputs(state, images):
        key = jax.random.key(SEED)
        return {
            "generate": method.generate(key, state, 4),
            "energy": jax.vmap(method.energy(state))(images),
            "reconstruct": method.reconstruct(key, state, images),
        } | method.scores(jax.random.key(SEED + 1), state, images)

    program = jax.jit(outputs)
    return lambda state: program(state, plain.images[0])


def test_who_reads_what(plain, read):
    sampled = {"generate", "calibration_distance", "calibration_gap", "energy_gap"}
    energy = {"energy", "calibration_distance", "calibration_gap", "energy_gap"}
    assert readers(read, plain.states[-1], SEED) == {
        "vae.params": set(),
        "vae.ema": sampled | {"reconstruct", "kl", "elbo"},
        "vae.optimizer": set(),
        "batch_stats": {"reconstruct", "kl", "elbo"},
        "vae_spectral": sampled | {"reconstruct", "elbo"},
        "energy.trained.params": energy,
        "energy.trained.optimizer": set(),
        "energy.spectral": energy,
        "dual": set(),
    }


def test_what_they_read(plain, read):
    config, state, images = config_of(), plain.states[-1], plain.images[0]
    nets, found = ec_vae.networks(config), read(state)

    @jax.jit
    def expected(state):
        f = energy_of(config, state.energy.trained.params, state.energy.spectral)
        decoder = normalize(state.vae["decoder"].ema, state.vae_spectral["decoder"])

        def running(module, name, x):
            params = {"encoder": state.vae["encoder"].ema, "decoder": decoder}[name]
            return module.apply({"params": params, "batch_stats": state.batch_stats[name]}, x)

        mu, logvar = running(nets.encoder, "encoder", images)
        key = jax.random.key(SEED + 1)
        z = mu + jnp.exp(logvar / 2) * jax.random.normal(jax.random.fold_in(key, 2), mu.shape)
        error = squared(running(nets.decoder, "decoder", z) - images)
        kl = jnp.sum(mu**2 + jnp.exp(logvar) - 1 - logvar, 1) / 2
        chain_key, latent_key = jax.random.split(key)
        generated = ec_vae.generate(config, latent_key, state, B)
        calibrated = calibrated_by(f, chain_key, generated, config.calibration)
        distance = jnp.mean(squared(calibrated - generated))
        return {
            "energy": f(images) / TAU,
            "reconstruct": running(nets.decoder, "decoder", mu),
            "calibration_distance": distance,
            "calibration_gap": distance - K * S * 64,
            "energy_gap": jnp.mean(f(generated)) - jnp.mean(f(images)),
            "kl": jnp.mean(kl),
            # log N(x; G(z), σ² I) - KL at σ² = β/2
            "elbo": -jnp.mean(error / BETA + kl) - 32 * np.log(np.pi * BETA),
        }

    images_found = found.pop("generate")
    assert_metrics(found, expected(state), 2e-4)
    z = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(SEED), i), (LATENT,)) for i in range(4)])
    params = normalize(state.vae["decoder"].ema, state.vae_spectral["decoder"])
    prior = jax.random.normal(jax.random.key(0), (vae_networks.STANDING_LATENTS, LATENT))
    decode = jax.jit(functools.partial(nets.decoder.apply, train=True, mutable=["batch_stats"]))
    together, _ = decode({"params": params, "batch_stats": state.batch_stats["decoder"]}, jnp.concatenate([prior, z]))
    # four more latents and the biased variance change the statistics of 256 by little
    np.testing.assert_allclose(images_found, together[-4:], atol=0.05)
