"""An iteration of Hat EBM is what its text says: each term, sign, weight, rate and average; and what then generates.

Networks of a few smooth layers stand in for the family's, which are tested elsewhere: they compile in no time, and
have no kinks at which rounding could choose another branch.
"""

import dataclasses
import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jebm import mcmc
from jebm.energy import bind
from jebm.mcmc import bank
from jebm.methods import ChainConfig, HatAutoencoderConfig, HatEBMConfig, Trained, with_weights
from jebm.methods import hat_autoencoder as build_autoencoder
from jebm.methods import hat_ebm as build
from jebm.methods.hat import keras
from jebm.methods.hat.autoencoder import Draws as AutoencoderDraws
from jebm.methods.hat.autoencoder import HatAutoencoderState
from jebm.methods.hat.autoencoder import iterate as iterate_autoencoder
from jebm.methods.hat.chains import conditional_drift
from jebm.methods.hat.ebm import Draws, HatEBMState, base_generator, draw, generate, iterate, optimizers, starts

BATCH, STEPS, SEED = 4, 2, 0

SYNTHESIS = HatEBMConfig(
    image_size=8, channels=1, latent_size=3, energy_width=4, generator_width=4, bank_size=3 * BATCH, temperature=0.03,
    chain=ChainConfig(num_steps=STEPS, noise_scale=0.2, max_drift=0.8, residual_start_scale=0.3),
    test_chain=ChainConfig(num_steps=1), energy_learning_rate=((3e-3, 0), (2e-3, 1)),
    generator_learning_rate=((5e-3, 0), (7e-4, 1)), energy_regularization=0.4, data_noise=0.5,
    generator_loss_scale=70.0, ema_decay=0.7,
)  # fmt: skip
JOINT = dataclasses.replace(
    SYNTHESIS, application="retrofit", generator="network", energy_regularization=0.0, energy_gradient_clip=0.5,
    chain=ChainConfig(
        num_steps=STEPS, noise_scale=0.2, latent_noise_scale=0.3, residual_precision=3.0, latent_prior=True,
        max_drift=0.8, residual_start_scale=0.3,
    ),
    test_chain=ChainConfig(num_steps=1, latent_noise_scale=0.1),
)  # fmt: skip
# where sampling is tested: so cold that chains descend, their noise being below rounding
COLD = {"num_steps": STEPS, "noise_scale": 1e-6, "max_drift": 0.5, "residual_start_scale": 0.2}
COLD_SYNTHESIS = dataclasses.replace(SYNTHESIS, temperature=2e-13, test_chain=ChainConfig(**COLD))
COLD_JOINT = dataclasses.replace(
    JOINT, temperature=2e-13, test_chain=ChainConfig(**COLD, latent_noise_scale=2e-6, residual_precision=2e10)
)


class SmallHat(nn.Module):
    image_size: int
    width: int
    dtype: object = None
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False)(jnp.tanh(nn.Dense(6)(x.reshape(*x.shape[:-3], -1))))[..., 0]


class SmallDecoder(nn.Module):
    width: int
    channels: int
    output_scale: float
    dtype: object = None

    @nn.compact
    def __call__(self, z):
        mean = self.variable("batch_stats", "mean", jnp.zeros, 16).value
        x = nn.Dense(self.channels * 64)(
            jnp.tanh(z.reshape(*z.shape[:-3], 16)) - jax.lax.broadcast_to_rank(mean, z.ndim - 2)
        )
        return self.output_scale * jnp.tanh(x.reshape(*z.shape[:-3], 8, 8, self.channels))


class SmallGenerator(nn.Module):
    image_size: int
    width: int
    channels: int
    output_scale: float
    dtype: object = None

    @nn.compact
    def __call__(self, z):
        z = nn.Dense(16)(z)
        return SmallDecoder(self.width, self.channels, self.output_scale)(z.reshape(*z.shape[:-1], 4, 4, 1))


class SmallEncoder(nn.Module):
    width: int
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(jnp.tanh(x.reshape(*x.shape[:-3], -1))).reshape(*x.shape[:-3], 4, 4, 1)


@pytest.fixture(autouse=True, scope="module")
def _small_networks():
    with pytest.MonkeyPatch.context() as patch:
        synthesis, autoencoder = (sys.modules[f"jebm.methods.hat.{name}"] for name in ("ebm", "autoencoder"))
        patch.setattr(synthesis, "HatEnergy", SmallHat)
        patch.setattr(synthesis, "HatGenerator", SmallGenerator)
        patch.setattr(synthesis, "HatDecoder", SmallDecoder)
        patch.setattr(autoencoder, "HatEncoder", SmallEncoder)
        patch.setattr(autoencoder, "HatDecoder", SmallDecoder)
        yield


def hat(params, x):
    return SmallHat(8, 4).apply({"params": params}, x)


def generator(variables, z):
    return SmallGenerator(8, 4, 1, 2.0).apply(variables, z)


def decoder(variables, z):
    return SmallDecoder(4, 1, 2.0).apply(variables, z)


def close(actual, expected, tolerance=1e-4):
    """Each leaf to within the tolerance of its largest entry, and a tenth of it of the tree's."""
    largest = max(float(np.abs(b).max()) for b in jax.tree.leaves(expected))

    def leaf(a, b):
        bound = tolerance * (float(np.abs(b).max()) + 0.1 * largest) + 1e-7
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)

    jax.tree.map(leaf, actual, expected)


def random_like(shapes, seed):
    """Arrays of these shapes, about as large as weights are at their start, biases included."""
    rng = np.random.default_rng((SEED, seed))

    def leaf(a):
        scale = 1 / np.sqrt(a.shape[0]) if a.ndim == 2 else 0.3
        return (scale * rng.standard_normal(a.shape)).astype(np.float32)

    return jax.tree.map(leaf, shapes)


def norms(a):
    return (a**2).sum(tuple(range(1, a.ndim))) ** 0.5


def length(tree):
    return float(np.sqrt(sum(np.sum(a**2) for a in jax.tree.leaves(tree))))


@functools.partial(jax.jit, static_argnums=0)
def plain_step(network, params, variables, z, y, noise, c):
    """(z, y, image, lengths of the drifts of y and z) after one step of the text, of a batch."""

    def energy(z, y):  # U, not T U
        h = jnp.sum(hat(params, network(variables, z) + y))
        return h / c["temperature"] + c["tau"] * jnp.sum(y**2) + 0.5 * c["prior"] * jnp.sum(z**2)

    along = jnp.zeros(len(z))
    if "z" in noise:
        step = 0.5 * c["latent_scale"] ** 2 * jax.grad(energy, 0)(z, y)
        z, along = z - step + c["latent_scale"] * noise["z"], norms(step)
    step = 0.5 * c["scale"] ** 2 * jax.grad(energy, 1)(z, y)
    step = step * jnp.minimum(1.0, c["bound"] / norms(step))[:, None, None, None]
    y = y - step + c["scale"] * noise["y"]
    return z, y, network(variables, z) + y, norms(step), along


def plain_chain(network, params, variables, z, y, noise, c):
    """(z, y, image, mean lengths of the drifts) after `STEPS` steps."""
    lengths = []
    for k in range(STEPS):
        xi = {name: a[:, k] for name, a in noise.items()}
        z, y, image, *drifts = jax.device_get(plain_step(network, params, variables, z, y, xi, c))
        lengths.append(np.mean(drifts, 1))
    return z, y, image, *np.mean(lengths, 0)


def constants(chain, temperature):
    return {
        "temperature": temperature, "tau": chain.residual_precision, "prior": float(chain.latent_prior),
        "scale": chain.noise_scale, "latent_scale": chain.latent_noise_scale, "bound": chain.max_drift,
    }  # fmt: skip


@jax.jit
def plain_energy_gradient(params, data, negatives, temperature, alpha):
    def loss(params):
        f, g = hat(params, data), hat(params, negatives)
        return (f.mean() - g.mean() + alpha * ((f**2).mean() + (g**2).mean())) / temperature, (f.mean(), g.mean())

    return jax.value_and_grad(loss, has_aux=True)(params)


@jax.jit
def plain_generator_gradient(params, batch_stats, z, images, factor):
    loss = lambda p: factor * jnp.mean((generator({"params": p, "batch_stats": batch_stats}, z) - images) ** 2)  # noqa: E731
    return jax.value_and_grad(loss)(params)


def moments(optimizer_state):
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return next(node for node in jax.tree.leaves(optimizer_state, is_leaf=is_adam) if is_adam(node))


def assert_adam(rate, count, before, after, gradient):
    """The step of Keras's Adam on this gradient: moments from it, parameters from the moments."""
    old, new = moments(before.optimizer), moments(after.optimizer)
    assert int(new.count) == count
    close(new.mu, jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, old.mu, gradient), 3e-4)
    roots = lambda tree: jax.tree.map(np.sqrt, tree)  # noqa: E731
    close(roots(new.nu), roots(jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, old.nu, gradient)), 3e-4)
    factor = rate * np.sqrt(1 - 0.999**count) / (1 - 0.9**count)

    def step(p, q, m, v):
        np.testing.assert_allclose(q - p, -factor * m / (np.sqrt(v) + 1e-7), rtol=1e-3, atol=2e-4 * rate)

    jax.tree.map(step, before.params, after.params, new.mu, new.nu)


def assert_average(decay, before, after):
    close(after.ema, jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, before.ema, after.params), 1e-5)


@functools.lru_cache
def state_of(config):
    """A state in which no two sets of weights, nor the bank and the generator, agree."""
    shapes = jax.eval_shape(build(config).init, jax.random.key(0), jnp.zeros((BATCH, 8, 8, 1)))
    zeros = lambda tree: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)  # noqa: E731
    trains = shapes.bank is not None
    trained = lambda net, seed: Trained(  # noqa: E731
        random_like(net.params, seed), zeros(net.optimizer), random_like(net.params, seed + 1)
    )
    if trains:
        network, statistics = trained(shapes.generator, 3), random_like(shapes.batch_stats, 0)
    else:
        network = {
            name: random_like(shapes.generator[name], seed) for name, seed in (("params", 3), ("batch_stats", 0))
        }
        statistics = {}
    return HatEBMState(
        energy=trained(shapes.energy, 1), generator=network, batch_stats=statistics,
        bank=bank.Bank(random_like(shapes.bank.entries, 5), np.arange(3 * BATCH, dtype=np.int32)) if trains else None,
    )  # fmt: skip


def draws_of(config, state, seed):
    rng = np.random.default_rng((SEED, seed))
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    latent = (3,) if config.application == "synthesis" else (4, 4, 1)
    noise = {"y": normal(BATCH, STEPS, 8, 8, 1), "z": normal(BATCH, STEPS, *latent)}
    if config.application == "synthesis":
        del noise["z"]
    return Draws(
        latent=normal(BATCH, *latent), residual=normal(BATCH, 8, 8, 1), data=normal(BATCH, 8, 8, 1),
        chain_key=jax.random.key(SEED), chain_noise=noise,
        indices=None if state.bank is None else rng.permutation(state.bank.size)[:BATCH],
    )  # fmt: skip


def batch_of(seed):
    return np.random.default_rng((SEED, seed)).uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32)


def variables_of(state):
    """Of the generator, whether it trains or not."""
    if isinstance(state.generator, Trained):
        return {"params": state.generator.params, "batch_stats": state.batch_stats}
    return state.generator


@functools.lru_cache
def two_iterations(config):
    """[(draws, images, state before, state after, metrics)] of two iterations, one program."""
    base, state = base_generator(config), state_of(config)
    step = jax.jit(functools.partial(iterate, config, base))
    found = []
    for i in range(2):
        draws, images = draws_of(config, state, 10 + i), batch_of(20 + i)
        after, metrics = jax.device_get(step(draws, state, images))
        found.append((draws, images, state, after, metrics))
        state = after
    return found


@pytest.mark.parametrize("config", [SYNTHESIS, JOINT], ids=["synthesis", "joint"])
def test_the_hats_part_of_an_iteration(config):
    network = generator if config.application == "synthesis" else decoder
    for i, (draws, images, before, after, metrics) in enumerate(two_iterations(config)):
        z, y, negatives, residual_drift, latent_drift = plain_chain(
            network, before.energy.params, variables_of(before), draws.latent, 0.3 * draws.residual, draws.chain_noise,
            constants(config.chain, 0.03),
        )  # fmt: skip
        assert 0.1 < residual_drift < 0.8  # chains move
        (loss, (on_data, on_negatives)), gradient = jax.device_get(
            plain_energy_gradient(
                before.energy.params, images + 0.5 * draws.data, negatives, 0.03, config.energy_regularization
            )
        )
        for name, expected in {
            "energy_loss": loss, "energy_data": on_data, "energy_negative": on_negatives,
            "energy_gradient_norm": 0.03 * length(gradient), "residual_norm": norms(y).mean(),
            "latent_norm": norms(z).mean(), "residual_drift": residual_drift,
            "latent_drift": latent_drift, "saturated_pixels": (np.abs(negatives) >= 1).mean(),
        }.items():  # fmt: skip
            assert metrics[name] == pytest.approx(float(expected), rel=1e-3, abs=1e-3), name
        if config.energy_gradient_clip is not None:
            lengths = jax.tree.map(np.linalg.norm, gradient)
            assert max(jax.tree.leaves(lengths)) > 0.5
            gradient = jax.tree.map(lambda g, n: g * min(1.0, 0.5 / float(n)), gradient, lengths)
        rate = (3e-3, 2e-3)[i]
        assert_adam(rate, i + 1, before.energy, after.energy, gradient)
        assert_average(0.7, before.energy, after.energy)


def test_the_generators_part_of_an_iteration():
    for i, (draws, _, before, after, metrics) in enumerate(two_iterations(SYNTHESIS)):
        old = jax.tree.map(lambda a: a[draws.indices], before.bank.entries)  # noqa: B023
        params, statistics = before.generator.params, before.batch_stats
        loss, gradient = jax.device_get(plain_generator_gradient(params, statistics, old["z"], old["image"], 70.0))
        assert metrics["generator_loss"] == pytest.approx(float(loss), rel=1e-4)
        assert metrics["bank_age"] == pytest.approx(float(before.bank.ages[draws.indices].mean()), abs=1e-5)
        assert_adam((5e-3, 7e-4)[i], i + 1, before.generator, after.generator, gradient)
        jax.tree.map(np.testing.assert_array_equal, after.batch_stats, statistics)
        assert_average(0.7, before.generator, after.generator)


def test_the_bank_takes_the_chains_ends_of_the_old_generator():
    for draws, _, before, after, _ in two_iterations(SYNTHESIS):
        _, _, ends, *_ = plain_chain(
            generator, before.energy.params, variables_of(before), draws.latent, 0.3 * draws.residual,
            draws.chain_noise, constants(SYNTHESIS.chain, 0.03),
        )  # fmt: skip
        expected = {name: np.array(a) for name, a in before.bank.entries.items()}
        ages = np.array(before.bank.ages) + 1
        expected["z"][draws.indices], expected["image"][draws.indices], ages[draws.indices] = draws.latent, ends, 0
        np.testing.assert_array_equal(after.bank.entries["z"], expected["z"])
        close(after.bank.entries["image"], expected["image"])
        np.testing.assert_array_equal(after.bank.ages, ages)


def test_a_given_generator_stays():
    for _, _, before, after, metrics in two_iterations(JOINT):
        jax.tree.map(np.testing.assert_array_equal, after.generator, before.generator)
        assert after.bank is None
        assert not isinstance(after.generator, Trained)
        assert after.batch_stats == {}
        assert not {"generator_loss", "bank_age"} & set(metrics)


def test_an_update_iterates_on_its_own_draws(monkeypatch):
    """All randomness of an update is `draw`'s: independent standard normals, distinct rows, a key for the chains."""
    given = []
    monkeypatch.setattr(sys.modules["jebm.methods.hat.ebm"], "iterate", lambda *a: given.append(a) or "done")
    state, images = state_of(SYNTHESIS), np.zeros((12, 64, 8, 8), np.float32)
    wide = dataclasses.replace(SYNTHESIS, latent_size=256)
    for seed in (1, 1, 2):
        assert build(wide).update(jax.random.key(SEED + seed), state, images) == "done"
    (config, _, draws, passed, batch, microbatches), again, other = given
    assert microbatches == 1
    assert config == wide
    assert passed is state
    assert batch is images
    jax.tree.map(np.testing.assert_array_equal, draws[:3], again[2][:3])
    assert sorted(draws.indices.tolist()) == list(range(12))
    assert draws.latent.shape == (12, 256)
    streams = jax.device_get([draws.residual, draws.data, other[2].residual, other[2].data])
    assert all(a.shape == images.shape for a in streams)
    correlation = np.corrcoef([np.ravel(a) for a in streams])
    assert np.abs(correlation - np.eye(4)).max() < 6 / np.sqrt(images.size)
    for a in (*streams, np.asarray(draws.latent)):
        assert abs(np.mean(a)) < 6 / np.sqrt(a.size)
        assert np.var(a) == pytest.approx(1.0, abs=6 * np.sqrt(2 / a.size))
    keys = [jax.random.key_data(d.chain_key).tolist() for d in (draws, other[2])]
    assert keys[0] != keys[1]


# what generates and scores


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("config", [COLD_SYNTHESIS, COLD_JOINT], ids=["synthesis", "joint"])
def test_samples_are_of_these_weights_at_this_temperature(config, weights):
    network = generator if config.application == "synthesis" else decoder
    state, key = state_of(SYNTHESIS if config.application == "synthesis" else JOINT), jax.random.key(SEED + 8)
    params, variables = state.energy.params, variables_of(state)
    if weights == "ema":
        params = state.energy.ema
        if config.application == "synthesis":
            variables = {**variables, "params": state.generator.ema}
        state = with_weights(state, "ema")
    z, y = jax.jit(lambda key: starts(config, jax.random.split(key)[0], BATCH))(key)
    zeros = {"y": np.zeros((BATCH, STEPS, 8, 8, 1)), "z": np.zeros((BATCH, STEPS, *z.shape[1:]))}
    if config.application == "synthesis":
        del zeros["z"]
    _, _, expected, drift, along = plain_chain(
        network, params, variables, z, y, zeros, constants(config.test_chain, 2e-13)
    )
    assert drift > 0.1
    assert along > 0.01 or config.application == "synthesis"
    images = jax.jit(lambda key, state: build(config).generate(key, state, BATCH))(key, state)
    assert np.abs(images - expected).mean() < 2e-3 * drift
    energy = 2e-13 * jax.jit(lambda state, images: jax.vmap(build(config).energy(state))(images))(state, images)
    np.testing.assert_allclose(energy, jax.jit(hat)(params, images), rtol=1e-4, atol=1e-6)  # H/T, not H, not -H/T


def test_starts_are_standard_latents_and_scaled_residuals():
    config = dataclasses.replace(COLD_SYNTHESIS, latent_size=64)
    z, y = jax.device_get(jax.jit(lambda key: starts(config, key, 128))(jax.random.key(SEED + 5)))
    assert (z.shape, y.shape) == ((128, 64), (128, 8, 8, 1))
    np.testing.assert_allclose(np.std(z), 1.0, atol=0.05)
    np.testing.assert_allclose(np.std(y), 0.2, rtol=0.05)
    assert abs(np.corrcoef(z.ravel(), y.ravel())[0, 1]) < 6 / np.sqrt(z.size)


def test_scores_are_means_of_samples_minus_mean_of_data(monkeypatch):
    images, state, method = batch_of(1), state_of(SYNTHESIS), build(COLD_SYNTHESIS)

    begun = {}

    def chains(key, hat, generator, z, y, chain, temperature):
        assert (chain, temperature) == (COLD_SYNTHESIS.test_chain, COLD_SYNTHESIS.temperature)
        begun["images"] = jax.vmap(generator)(z) + y
        return types.SimpleNamespace(image=-1.5 * images)

    monkeypatch.setattr(sys.modules["jebm.methods.hat.ebm"], "run_chains", chains)
    found, begun = jax.jit(lambda *given: (method.scores(*given), begun["images"]))(
        jax.random.key(SEED + 6), state, images
    )
    h = jax.jit(hat)
    mean = lambda x: float(np.mean(h(state.energy.params, x)))  # noqa: E731
    expected = {
        "energy_gap": mean(-1.5 * images) - mean(images), "energy_gap_generator": mean(begun) - mean(images),
    }  # fmt: skip
    assert begun.shape == images.shape
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_logged_drift_is_what_moved():
    config = ChainConfig(noise_scale=0.2, max_drift=0.5)
    lengths = [float(conditional_drift(np.float32(norm), config, 0.1)) for norm in (1.0, 10.0)]
    assert lengths == pytest.approx([0.2**2 / (2 * 0.1), 0.5])
    free = dataclasses.replace(config, max_drift=None)
    assert float(conditional_drift(np.float32(10.0), free, 0.1)) == pytest.approx(2.0)


def test_the_method_states_its_costs_parameters_and_training_chain():
    state = state_of(SYNTHESIS)
    method, joint = build(SYNTHESIS), build(COLD_JOINT)
    assert method.evaluations_per_image == 1 + 1
    assert joint.evaluations_per_image == 2 + 3 * STEPS
    assert method.chain.num_steps == STEPS
    assert method.chain.step_size == pytest.approx(0.2**2 / (2 * 0.03))
    assert (method.temperature, method.chain.max_drift) == (0.03, 0.8)
    assert (method.image_shape, method.latent_shape, joint.latent_shape) == ((8, 8, 1), (3,), (4, 4, 1))
    networks = method.networks(state)
    assert networks["energy"] is state.energy
    assert networks["generator"] is state.generator
    frozen = state_of(JOINT)
    assert joint.networks(frozen)["generator"] is frozen.generator["params"]


def test_rates_go_to_their_networks():
    params = {"a": np.ones(2, np.float32)}
    gradient = {"a": np.array([3.0, -4.0], np.float32)}
    for config, expected in ((SYNTHESIS, (3e-3, 5e-3)), (JOINT, (3e-3, 5e-3))):
        for optimizer, rate in zip(optimizers(config), expected, strict=True):
            updates = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])(params, gradient)  # noqa: B023
            np.testing.assert_allclose(updates["a"], [-rate, rate], rtol=1e-4)


# Keras's Adam, in numpy


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_adam_by_its_formula(size):
    """Gradients as small as eps tell where eps stands."""
    rates, b1, b2, eps = [0.1, 0.1, 0.02, 0.02], 0.8, 0.95, 1e-7
    optimizer = keras.adam([(0.1, 0), (0.02, 2)], b1, b2, eps)
    step = jax.jit(optimizer.update)
    gradients = size * np.array([[1.0, -2.0, 0.0], [0.5, 0.5, 0.0], [-3.0, 1e-3, 0.0], [1.0, 1.0, 1.0]])
    state, m, v = optimizer.init(jnp.zeros(3)), np.zeros(3), np.zeros(3)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        updates, state = step(gradient.astype(np.float32), state)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected = -rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-9)


def test_tensors_are_clipped_one_by_one():
    tree = {"long": jnp.array([[3.0, -4.0]]), "short": jnp.array([0.6, 0.8]), "zero": jnp.zeros(2)}
    clipped, _ = keras.clip_each_tensor(2.0).update(tree, optax.EmptyState())
    np.testing.assert_allclose(clipped["long"], [[1.2, -1.6]], rtol=1e-6)
    np.testing.assert_array_equal(clipped["short"], tree["short"])
    np.testing.assert_array_equal(clipped["zero"], tree["zero"])


# the retrofit's autoencoder


AUTOENCODER = HatAutoencoderConfig(
    image_size=8, channels=1, width=4, latent_noise=0.3, loss_scale=50.0, learning_rate=((4e-3, 0), (1e-3, 1)),
    ema_decay=0.6,
)  # fmt: skip


@functools.lru_cache
def autoencoder_state():
    shapes = jax.eval_shape(build_autoencoder(AUTOENCODER).init, jax.random.key(0), jnp.zeros((BATCH, 8, 8, 1)))
    trained = lambda net, seed: Trained(  # noqa: E731
        random_like(net.params, seed), jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), net.optimizer),
        random_like(net.params, seed + 1),
    )  # fmt: skip
    return HatAutoencoderState(
        trained(shapes.encoder, 0), trained(shapes.decoder, 3), random_like(shapes.batch_stats, 2)
    )


def both(state, field="params"):
    return {"encoder": getattr(state.encoder, field), "decoder": getattr(state.decoder, field)}


def plain_codes(params, images):
    return SmallEncoder(4).apply({"params": params["encoder"]}, images)


def plain_decoded(params, statistics, codes):
    return decoder({"params": params["decoder"], "batch_stats": statistics}, codes)


@jax.jit
def plain_autoencoder_gradient(params, statistics, images, noise):
    def loss(params):
        return 50.0 * jnp.mean((images - plain_decoded(params, statistics, plain_codes(params, images) + noise)) ** 2)

    return jax.value_and_grad(loss)(params)


def test_two_iterations_of_the_autoencoder():
    state = autoencoder_state()
    step = jax.jit(functools.partial(iterate_autoencoder, AUTOENCODER))
    for i, rate in enumerate((4e-3, 1e-3)):
        noise = np.random.default_rng((SEED, i)).standard_normal((BATCH, 4, 4, 1)).astype(np.float32)
        images = batch_of(i)
        after, metrics = jax.device_get(step(AutoencoderDraws(noise), state, images))
        loss, gradient = jax.device_get(plain_autoencoder_gradient(both(state), state.batch_stats, images, 0.3 * noise))
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-4)
        assert float(metrics["gradient_norm"]) == pytest.approx(length(gradient), rel=1e-3)
        for name in ("encoder", "decoder"):
            assert_adam(rate, i + 1, getattr(state, name), getattr(after, name), gradient[name])
            assert_average(0.6, getattr(state, name), getattr(after, name))
        jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
        state = after


def test_an_update_of_the_autoencoder_draws_standard_normals(monkeypatch):
    given = []
    module = sys.modules["jebm.methods.hat.autoencoder"]
    monkeypatch.setattr(module, "iterate", lambda *arguments: given.append(arguments) or "done")
    images = jnp.zeros((256, 8, 8, 1))
    assert build_autoencoder(AUTOENCODER).update(jax.random.key(SEED + 1), "state", images) == "done"
    config, (noise,), state, batch, _ = given[0]
    assert (config, state) == (AUTOENCODER, "state")
    assert batch is images
    assert noise.shape == (256, 4, 4, 1)
    assert abs(float(noise.mean())) < 6 / 64
    assert float(noise.var()) == pytest.approx(1.0, abs=6 * np.sqrt(2) / 64)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_autoencoder_uses_these_weights(weights):
    images, method, key = batch_of(3), build_autoencoder(AUTOENCODER), jax.random.key(SEED + 2)
    params = both(autoencoder_state(), "params" if weights == "raw" else "ema")
    state = with_weights(autoencoder_state(), weights)

    @jax.jit
    def expected(params, statistics, images, z):
        again = plain_decoded(params, statistics, plain_codes(params, images))
        return again, plain_decoded(params, statistics, z)

    @jax.jit
    def found(state, images, z):
        return (
            method.reconstruct(key, state, images), method.generator(state)(z), jax.vmap(method.energy(state))(images),
            method.scores(key, state, images), method.generate(key, state, 3),
        )  # fmt: skip

    z = jax.jit(jax.vmap(lambda k: jax.random.normal(k, (4, 4, 1))))(mcmc.chain_keys(key, 3))
    again, decoded = jax.device_get(expected(params, state.batch_stats, images, z))
    reconstructed, generated, energy, held_out, samples = jax.device_get(found(state, images, z))
    np.testing.assert_allclose(reconstructed, again, atol=2e-5)
    np.testing.assert_allclose(generated, decoded, atol=2e-5)
    np.testing.assert_allclose(samples, decoded, atol=2e-5)
    np.testing.assert_allclose(energy, np.sum((images - again) ** 2, (1, 2, 3)), rtol=1e-4)
    assert float(held_out["loss"]) == pytest.approx(50.0 * float(np.mean((images - again) ** 2)), rel=1e-4)
    assert method.networks(state) == {"encoder": state.encoder, "decoder": state.decoder}
    assert (method.image_shape, method.latent_shape, method.weights) == ((8, 8, 1), (4, 4, 1), "raw")


def test_a_hat_over_a_given_function_keeps_its_weights_in_the_state():
    """Refinement of any pure function: samples follow the weights that the state holds, not those of the build."""
    config = dataclasses.replace(COLD_JOINT, application="refinement")
    given = bind(lambda w, z: jnp.tanh(w * z.sum()) * jnp.ones((8, 8, 1)), jnp.asarray(0.5))
    base = base_generator(config, given)
    state = with_weights(state_of(JOINT)._replace(generator=[np.float32(1.5)]), "ema")
    z, y = jax.jit(lambda key: starts(config, jax.random.split(key)[0], BATCH))(jax.random.key(SEED + 4))
    zeros = {"y": np.zeros((BATCH, STEPS, 8, 8, 1)), "z": np.zeros((BATCH, STEPS, 3))}
    network = lambda w, z: jnp.tanh(w * z.sum(-1))[:, None, None, None] * jnp.ones((1, 8, 8, 1))  # noqa: E731
    _, _, expected, drift, _ = plain_chain(
        network, state_of(JOINT).energy.ema, 1.5, z, y, zeros, constants(config.test_chain, 2e-13)
    )
    images = jax.jit(lambda key, state: generate(config, base, key, state, BATCH))(jax.random.key(SEED + 4), state)
    assert np.abs(images - expected).mean() < 2e-3 * drift
    assert draw(config, jax.random.key(0), state, batch_of(0)).indices is None
