"""An iteration of Denoising-EBM is what its text says: each term, sign, weight, level and average; and what samples.

Networks of a few smooth layers stand in for the family's, which are tested elsewhere: they compile in no time.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jebm import mcmc
from jebm.mcmc import bank
from jebm.methods import denoising_ebm as build
from jebm.methods.denoising import chains as chains
from jebm.methods.denoising import model as denoising_model
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from jebm.methods.denoising.ebm import (
    DenoisingEBMConfig,
    DenoisingEBMState,
    denoising_losses,
    draw,
    draw_noise,
    examples,
    generator_of,
    iterate,
    part_energies,
)
from jebm.methods.denoising.networks import on_sphere
from jebm.methods.denoising.sampling import synthesize
from jebm.methods.denoising.state import initialize, optimizer
from jebm.methods.shared import Trained

BATCH, SEED = 4, 0
LADDER = np.array([0.8, 0.2, 0.05])

PIXEL = DenoisingEBMConfig(
    image_size=8, channels=1, semantic_chain="pixel", width=4, multipliers=(1,), num_blocks=1, latent_size=6,
    latent_width=4, head_outputs=3, head_width=5, sigma_max=0.8, sigma_min=0.02, semantic_sigma_min=0.05,
    chain=SemanticChainConfig(num_steps=2, sampling_steps=1, noise_scale=0.3, latent_temperature=0.3),
    semantic_levels=3, negatives="bank", bank_size=4, rejuvenation=0.3, denoising_weight=2.5, energy_regularization=0.6,
    texture_weight=1.7, score_sigma=0.3, refinement=RefinementConfig(sigma_start=0.15, num_levels=3, steps_per_level=2),
    learning_rate=4e-3, b1=0.8, warmup_steps=2, gradient_clip=0.4, ema_decay=0.15,
)  # fmt: skip
LATENT = dataclasses.replace(PIXEL, semantic_chain="latent", negatives="noisier")


class SmallUNet(nn.Module):
    width: int
    multipliers: tuple
    num_blocks: int
    dtype: object = None
    rematerialize: bool = False

    def setup(self):
        self.encoder, self.decoder = nn.Dense(7), nn.Dense(64)

    def features(self, x, sigma):
        flat = x.reshape(*x.shape[:-3], -1)
        return jnp.tanh(self.encoder(jnp.concatenate([flat, jnp.log(sigma)[..., None]], -1)))

    def __call__(self, x, sigma):
        return self.decoder(self.features(x, sigma)).reshape(x.shape)


class SmallHead(nn.Module):
    outputs: int
    hidden: int

    @nn.compact
    def __call__(self, features):
        return nn.Dense(self.outputs)(jnp.tanh(nn.Dense(self.hidden)(features)))


class SmallLatentHead(nn.Module):
    outputs: int
    hidden: int

    @nn.compact
    def __call__(self, z, sigma):
        return nn.Dense(self.outputs)(jnp.tanh(nn.Dense(self.hidden)(z) + jnp.log(sigma)[..., None]))


class SmallEncoder(nn.Module):
    latent_size: int
    width: int
    multipliers: tuple
    dtype: object = None
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x, sigma):
        flat = jnp.concatenate([x.reshape(*x.shape[:-3], -1), jnp.log(sigma)[..., None]], -1)
        return on_sphere(nn.Dense(self.latent_size)(flat))


class SmallDecoder(nn.Module):
    channels: int
    width: int
    multipliers: tuple
    start_size: int
    dtype: object = None

    @nn.compact
    def __call__(self, z):
        return nn.sigmoid(nn.Dense(64)(on_sphere(z))).reshape(*z.shape[:-1], 8, 8, 1)


@pytest.fixture(autouse=True, scope="module")
def _small_networks():
    small = {
        "DenoisingUNet": SmallUNet, "PooledHead": SmallHead, "LatentHead": SmallLatentHead,
        "CompactEncoder": SmallEncoder, "CompactDecoder": SmallDecoder,
    }  # fmt: skip
    denoising_model.networks.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in small.items():
            patch.setattr(denoising_model, name, module)
        yield
    denoising_model.networks.cache_clear()


def wide(a):
    return a[:, None, None, None]


@jax.jit
def predicted(params, x, sigma):
    return SmallUNet(4, (1,), 1).apply({"params": params["unet"]}, x, sigma)


@jax.jit
def encoded(params, x, sigma):
    return SmallEncoder(6, 4, (1,)).apply({"params": params["encoder"]}, x, sigma)


@jax.jit
def decoded(params, z):
    return SmallDecoder(1, 4, (1,), 8).apply({"params": params["decoder"]}, z)


@jax.jit
def semantic(params, x, sigma):
    """F of a batch of images, or of latents."""
    if "encoder" in params:
        output = SmallLatentHead(3, 5).apply({"params": params["head"]}, x, sigma)
    else:
        features = SmallUNet(4, (1,), 1).apply({"params": params["unet"]}, x, sigma, method="features")
        output = SmallHead(3, 5).apply({"params": params["head"]}, features)
    return 0.5 * jnp.sum(output**2, -1)


@jax.jit
def plain_slope(params, x, sigma):
    return jax.grad(lambda x: semantic(params, x, sigma).sum())(x)


def random_like(shapes, seed):
    """Arrays of these shapes, about as large as weights are at their start, biases included."""
    rng = np.random.default_rng((SEED, seed))

    def leaf(a):
        scale = 1 / np.sqrt(a.shape[0]) if a.ndim == 2 else 0.3
        return (scale * rng.standard_normal(a.shape)).astype(np.float32)

    return jax.tree.map(leaf, shapes)


def state_of(config):
    """A state whose weights and averages disagree; its bank holds what no chain has made."""
    shapes = jax.eval_shape(functools.partial(initialize, config), jax.random.key(0), batch_of(0))
    rows = None
    if shapes.bank is not None:
        size = shapes.bank.size
        rows = bank.Bank(
            {"x": random_like(shapes.bank.entries["x"], 2), "level": np.arange(size, dtype=np.int32) % 3},
            np.arange(size, dtype=np.int32),
        )
    params, averages = random_like(shapes.params, 0), random_like(shapes.ema, 1)
    zeros = lambda tree: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)  # noqa: E731
    networks = {
        name: Trained(params[name], zeros(network.optimizer), averages[name])
        for name, network in shapes.networks.items()
    }
    return DenoisingEBMState(networks, rows, np.zeros((), np.int32))


def batch_of(seed, n=BATCH):
    return np.random.default_rng((SEED, seed)).uniform(-1, 1, (n, 8, 8, 1)).astype(np.float32)


def key_of(seed):
    return jax.random.key(100 * SEED + seed)


def close(actual, expected, tolerance=1e-4):
    """Each leaf to within the tolerance of its largest entry, and a tenth of it of the tree's."""
    largest = max(float(np.abs(b).max()) for b in jax.tree.leaves(expected))

    def leaf(a, b):
        bound = tolerance * (float(np.abs(b).max()) + 0.1 * largest) + 1e-7
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)

    jax.tree.map(leaf, actual, expected)


# one update


def denoising_draws(key, lowest, i):
    """(σ, n) of the i-th denoiser: σ log-uniform from ``lowest`` to sigma_max."""
    level_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
    share = jax.random.uniform(level_key, (BATCH,))
    return lowest ** (1 - share) * 0.8**share, jax.random.normal(noise_key, (BATCH, 8, 8, 1))


@jax.jit
def plain_gradients(params, rows, x, key):
    key = jax.random.split(key)[1]

    def loss(params):
        on_data, on_negatives = (semantic(params, a, rows.sigmas) for a in (rows.positives, rows.negatives))
        sigma, noise = denoising_draws(key, 0.02, 0)
        named = {
            "energy_data": on_data.mean(), "energy_negative": on_negatives.mean(),
            "denoising_loss": 0.5 * jnp.mean((predicted(params, x + wide(sigma) * noise, sigma) + noise) ** 2),
        }  # fmt: skip
        total = named["energy_data"] - named["energy_negative"] + 2.5 * named["denoising_loss"]
        total += 0.6 * ((on_data**2).mean() + (on_negatives**2).mean())
        if "encoder" in params:
            sigma, noise = denoising_draws(key, 0.05, 1)
            again = decoded(params, encoded(params, x + wide(sigma) * noise, sigma))
            named["autoencoder_loss"] = 0.5 * jnp.mean(((again - x) / wide(sigma)) ** 2)
            total += 2.5 * named["autoencoder_loss"]
        return total, named

    return jax.grad(loss, has_aux=True)(params)


def moments(optimizer_state):
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return next(node for node in jax.tree.leaves(optimizer_state, is_leaf=is_adam) if is_adam(node))


@pytest.mark.parametrize("config", [PIXEL, LATENT], ids=["pixel", "latent"])
def test_three_updates(config):
    state = state_of(config)

    @jax.jit
    def step(key, state, batch):
        draws = draw(config, key, state, batch)
        return examples(config, draws, state, 0.5 * (batch + 1)), *iterate(config, draws, state, batch)

    clipped = 0
    for i in range(3):
        key, batch = key_of(i), batch_of(i)
        rows, after, metrics = jax.device_get(step(key, state, batch))
        gradients, named = jax.device_get(plain_gradients(state.params, rows, 0.5 * (batch + 1), key))
        named["energy_gap"] = named["energy_data"] - named["energy_negative"]
        named["chain_displacement"] = np.sqrt(np.mean((rows.negatives - rows.starts) ** 2))
        for kind, examined in (("data", rows.positives), ("negative", rows.negatives)):
            slopes = np.asarray(plain_slope(state.params, examined, rows.sigmas)).reshape(BATCH, -1)
            named[f"{kind}_gradient_norm"] = np.linalg.norm(slopes, axis=1).mean()
        if config.negatives == "bank":
            named["bank_age"] = rows.bank.ages.mean()
            jax.tree.map(np.testing.assert_array_equal, after.bank, rows.bank)
        for name, gradient in gradients.items():
            norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
            named[f"{name}_gradient_norm"] = norm
            clipped += norm > 0.4
            gradient = jax.tree.map(lambda g: g * min(1.0, 0.4 / norm), gradient)  # noqa: B023
            old, new = moments(state.networks[name].optimizer), moments(after.networks[name].optimizer)
            close(new.mu, jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, old.mu, gradient), 3e-4)
            roots = lambda tree: jax.tree.map(np.sqrt, tree)  # noqa: E731
            expected = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, old.nu, gradient)
            close(roots(new.nu), roots(expected), 3e-4)
            rate = 4e-3 * i / 2  # warming up in two updates, from 0

            def stepped(p, q, m, v):
                moved = rate * m / (1 - 0.8 ** (i + 1)) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)  # noqa: B023
                np.testing.assert_allclose(p - q, moved, rtol=1e-3, atol=2e-6)

            jax.tree.map(stepped, state.params[name], after.params[name], new.mu, new.nu)
        assert set(metrics) == set(named)
        for name, expected in named.items():
            assert float(metrics[name]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4), name
        decay = (0.1, 0.15, 0.15)[i]  # (1 + t)/(10 + t), until ema_decay
        mixed = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, after.params)  # noqa: B023
        close(after.ema, mixed, 1e-5)
        assert int(after.step) == i + 1
        state = after
    assert clipped > 0


def test_without_a_warm_up_the_rate_is_whole_from_the_start():
    plain = optimizer(dataclasses.replace(PIXEL, warmup_steps=0))
    params = {"a": np.zeros(2, np.float32)}
    step = jax.jit(lambda params, gradient: plain.update(gradient, plain.init(params), params)[0])
    updates = step(params, {"a": np.array([0.1, -0.2], np.float32)})
    np.testing.assert_allclose(updates["a"], [-4e-3, 4e-3], rtol=1e-4)


# positives, starts, ends


def greys(n):
    return np.broadcast_to(np.linspace(0.1, 0.9, n, dtype=np.float32)[:, None, None, None], (n, 8, 8, 1))


def rows_of(config, state, seed, n):
    made = lambda key, state, x: examples(config, draw(config, key, state, x), state, x)  # noqa: E731
    return jax.device_get(jax.jit(made)(key_of(seed), state, greys(n)))


def normals(a, b):
    """Independent standard normals, up to six standard errors."""
    for values in (a, b):
        assert abs(np.mean(values)) < 6 / np.sqrt(values.size)
        assert np.var(values) == pytest.approx(1.0, abs=6 * np.sqrt(2 / values.size))
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 6 / np.sqrt(a.size)


@pytest.mark.parametrize("negatives", ["noisier", "recovery"])
def test_positives_and_starts_have_noise_of_their_own(negatives, monkeypatch):
    given = []

    def run_level(key, semantic, start, sigma, config, *, latent, gap):
        given.append((config, latent))
        return start if gap is None else jnp.full_like(start, gap)

    monkeypatch.setattr(chains, "run_level", run_level)
    config, n = dataclasses.replace(PIXEL, negatives=negatives), 600
    x = greys(n)
    rows = rows_of(config, state_of(config), 0, n)
    assert given == [(config.chain, False)]
    levels = np.array([int(np.argmin(np.abs(LADDER - s))) for s in rows.sigmas])
    np.testing.assert_allclose(rows.sigmas, LADDER[levels], rtol=1e-6)
    assert np.abs(np.bincount(levels) - n / 3).max() < 6 * np.sqrt(n * 2 / 9)
    above = LADDER[np.maximum(levels - 1, 0)]
    own = (rows.positives - x) / wide(rows.sigmas)
    gaps = np.where(levels == 0, np.inf, np.sqrt(np.maximum(above**2 - LADDER[levels] ** 2, 0)))
    if negatives == "recovery":
        starts = (rows.starts - rows.positives) / wide(gaps)
        np.testing.assert_allclose(rows.negatives, np.broadcast_to(wide(gaps), x.shape), rtol=1e-5)
    else:
        starts = (rows.starts - np.roll(x, 1, 0)) / wide(above)
        np.testing.assert_array_equal(rows.negatives, rows.starts)
    starts = np.where(wide(levels) == 0, (rows.starts - 0.5) / 0.8, starts)
    normals(own, starts)
    for level in range(3):
        normals(own[levels == level], starts[levels == level])


def test_latents_are_encoded_at_their_own_levels(monkeypatch):
    """The draws are those of the same images on pixels: positives are f(x̃, σ), starts f of the level above."""
    monkeypatch.setattr(chains, "run_level", lambda key, semantic, start, *rest, **named: start)
    state, n = state_of(LATENT), 300
    images = dataclasses.replace(PIXEL, negatives="noisier")
    pixels, rows = rows_of(images, state_of(images), 1, n), rows_of(LATENT, state, 1, n)
    np.testing.assert_array_equal(rows.sigmas, pixels.sigmas)
    levels = np.array([int(np.argmin(np.abs(LADDER - s))) for s in rows.sigmas])
    above = LADDER[np.maximum(levels - 1, 0)].astype(np.float32)
    np.testing.assert_allclose(rows.positives, encoded(state.params, pixels.positives, rows.sigmas), atol=1e-4)
    from_above = np.asarray(encoded(state.params, pixels.starts, above))
    np.testing.assert_allclose(rows.starts[levels > 0], from_above[levels > 0], atol=1e-4)
    first = np.asarray(rows.starts[levels == 0])  # from N(0, I) itself
    normals(first, np.asarray(pixels.starts[levels == 0]).reshape(len(first), -1)[:, : first.shape[1]] / 0.8 - 0.625)


def test_training_chains_descend_the_energy_at_their_level():
    """On pixels, the noise being below rounding: x' = x - clip(½ ∇F(x, σ)), K times, with the weights in training."""
    chain = SemanticChainConfig(num_steps=2, sampling_steps=1, noise_scale=1e-7, max_drift=0.1)
    config, n = dataclasses.replace(PIXEL, negatives="noisier", chain=chain), 12
    state = state_of(config)
    rows = rows_of(config, state, 2, n)
    expected = descended(state.params, rows.starts, rows.sigmas, 2, 0.1)
    assert np.abs(expected - rows.starts).max() > 1e-3
    np.testing.assert_allclose(rows.negatives, expected, atol=2e-5)


def descended(params, x, sigmas, num_steps, bound):
    for _ in range(num_steps):
        drift = 0.5 * np.asarray(plain_slope(params, x, sigmas))
        norm = np.sqrt(np.sum(drift**2, (1, 2, 3)))
        x = x - drift * wide(np.minimum(1.0, bound * 8 * sigmas / norm))
    return x


def test_training_chains_on_latents_descend_the_energy_at_their_level():
    """Differences of runs with the same draws at two τ: the reference and the noise are the same in both."""
    chain = SemanticChainConfig(num_steps=1, latent_step_size=0.2, latent_temperature=0.3, max_drift=None)
    config, state = dataclasses.replace(LATENT, chain=chain), state_of(LATENT)
    flat = dataclasses.replace(config, chain=dataclasses.replace(chain, latent_temperature=1e9))
    rows, others = (rows_of(c, state, 3, 12) for c in (config, flat))
    np.testing.assert_array_equal(rows.starts, others.starts)
    expected = -0.2 / 0.3 * np.asarray(plain_slope(state.params, rows.starts, rows.sigmas))
    np.testing.assert_allclose(rows.negatives - others.negatives, expected, atol=1e-5)
    noise = (others.negatives - 0.8 * rows.starts) / np.sqrt(2 * 0.2)  # of N(0, I), the reference
    assert 0.3 < np.std(noise) < 2


def test_rows_of_the_bank_go_on_or_are_exchanged(monkeypatch):
    monkeypatch.setattr(chains, "run_level", lambda key, semantic, start, *rest, **named: start + 1.0)
    config, n = dataclasses.replace(PIXEL, bank_size=100), 200
    state = state_of(config)
    rows = rows_of(config, state, 4, n)
    np.testing.assert_array_equal(rows.negatives, rows.starts + 1.0)
    before, after = (np.asarray(b.entries["x"]).reshape(300, -1) for b in (state.bank, rows.bank))
    np.testing.assert_array_equal(rows.bank.entries["level"], state.bank.entries["level"])
    age = np.asarray(rows.bank.ages - state.bank.ages)
    drawn = (before != after).any(1)
    went_on = np.abs(after - before - 1.0).max(1) < 1e-6
    assert drawn.sum() == n
    np.testing.assert_array_equal(age[~drawn], 1)
    np.testing.assert_array_equal(age[went_on], 1)
    np.testing.assert_array_equal(np.asarray(rows.bank.ages)[drawn & ~went_on], 0)
    exchanged = (drawn & ~went_on).sum() / n
    assert abs(exchanged - 0.3) < 6 * np.sqrt(0.21 / n)
    # each end lies in a row of its own level
    for end, sigma in zip(np.asarray(rows.negatives).reshape(n, -1), rows.sigmas, strict=True):
        (row,) = np.flatnonzero((after == end).all(1))
        assert LADDER[row % 3] == pytest.approx(float(sigma))


@pytest.mark.parametrize("config", [PIXEL, dataclasses.replace(LATENT, negatives="bank")], ids=["pixel", "latent"])
def test_a_bank_begins_as_noise(config):
    config = dataclasses.replace(config, bank_size=400)
    state = jax.device_get(jax.jit(functools.partial(initialize, config))(key_of(5), batch_of(0)))
    x = np.asarray(state.bank.entries["x"])
    centre, scale, shape = (0.5, 0.8, (8, 8, 1)) if config.semantic_chain == "pixel" else (0.0, 1.0, (6,))
    assert x.shape == (1200, *shape)
    normals((x - centre) / scale, np.random.default_rng(SEED).standard_normal(x.shape))
    assert np.bincount(state.bank.entries["level"]).tolist() == [400, 400, 400]
    assert not state.bank.ages.any()
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)


# sampling


STILL = RefinementConfig(sigma_start=0.15, num_levels=3, steps_per_level=2, step_size=1e-14)
COLD = dataclasses.replace(
    PIXEL, chain=SemanticChainConfig(num_steps=3, sampling_steps=2, noise_scale=1e-7, max_drift=0.1), refinement=STILL
)


def with_ema(state, averages):
    networks = {name: network._replace(ema=averages[name]) for name, network in state.networks.items()}
    return state._replace(networks=networks)


def sampled(config, state, n=64):
    return jax.device_get(jax.jit(functools.partial(synthesize, config), static_argnums=(2, 3))(key_of(6), state, n, 1))


def test_the_two_stages_on_pixels():
    """Chains that descend F of the averaged weights level by level; a refinement too small to move; a denoising."""
    state = state_of(COLD)
    average = state.ema
    flat = {**average, "head": jax.tree.map(np.zeros_like, average["head"])}
    start = 0.5 * (sampled(COLD, with_ema(state, flat)).semantic + 1)  # without a slope chains stay
    normals((start - 0.5) / 0.8, np.random.default_rng(SEED).standard_normal(start.shape))
    made = sampled(COLD, state)
    x = start
    for sigma in LADDER[:2]:  # not below σ_J
        x = descended(average, x, np.full(64, sigma, np.float32), 2, 0.1)
    assert np.abs(x - start).max() > 1e-2
    np.testing.assert_allclose(made.semantic, 2 * x - 1, atol=1e-4)
    assert made.steps.shape[1] == 6  # three levels of two steps
    for k in range(6):
        np.testing.assert_allclose(made.steps[:, k], made.semantic, atol=1e-4)
    last = 0.5 * (made.steps[:, -1] + 1)
    denoised = last + 0.02 * np.asarray(predicted(average, last, np.full(64, 0.02, np.float32)))
    np.testing.assert_allclose(made.images, 2 * np.clip(denoised, 0, 1) - 1, atol=1e-4)
    only = sampled(dataclasses.replace(COLD, sampling="semantic_only"), state)
    x = descended(average, x, np.full(64, LADDER[2], np.float32), 2, 0.1)
    np.testing.assert_allclose(only.images, np.clip(2 * x - 1, -1, 1), atol=1e-4)
    assert only.steps is None
    images = jax.jit(lambda s: build(COLD).generate(key_of(6), s, 64))(state)
    np.testing.assert_allclose(images, made.images, atol=1e-5)


def test_texture_alone_refines_pure_noise():
    state = state_of(COLD)
    made = sampled(dataclasses.replace(COLD, sampling="texture_only"), state)
    first = 0.5 * (made.steps[:, 0] + 1)
    normals((first - 0.5) / 0.8, np.random.default_rng(SEED).standard_normal(first.shape))
    assert made.semantic is None


def test_refinement_descends_the_averaged_texture_energy(monkeypatch):
    """What `synthesize` hands to the refinement, from σ_J or σ_1 to σ_min, and u's weights."""
    given = []

    def refine(key, predictor, start, sigmas, config, *, positions_every):
        given.append((sigmas, config, positions_every))
        return start + predictor(start, jnp.asarray(0.3)), None

    monkeypatch.setattr(chains, "refine", refine)
    state = state_of(COLD)
    for sampling, highest in (("two_stage", 0.15), ("texture_only", 0.8)):
        config = dataclasses.replace(COLD, sampling=sampling)
        made = jax.device_get(jax.jit(lambda state: synthesize(config, key_of(7), state, 4))(state))  # noqa: B023
        sigmas, passed, every = given.pop()
        np.testing.assert_allclose(sigmas, np.geomspace(highest, 0.02, 3))
        assert (passed, every, given) == (STILL, 0, [])
        if sampling == "two_stage":
            x = 0.5 * (made.semantic + 1)
            moved = x + np.asarray(predicted(state.ema, x, np.full(4, 0.3, np.float32)))
            np.testing.assert_allclose(made.images, 2 * np.clip(moved, 0, 1) - 1, atol=1e-4)


def test_recovery_samples_given_the_level_above(monkeypatch):
    given = []
    recorded = lambda *rest, **named: given.append(named) or rest[2]  # noqa: E731
    monkeypatch.setattr(chains, "anneal_semantic", recorded)
    for config, recovery in ((COLD, False), (dataclasses.replace(COLD, negatives="recovery"), True)):
        only = dataclasses.replace(config, sampling="semantic_only")
        jax.eval_shape(lambda state: synthesize(only, key_of(8), state, 2), state_of(COLD))  # noqa: B023
        assert given.pop() == {"latent": False, "recovery": recovery}


def test_the_two_stages_on_latents():
    """The chain on z has averaged weights; g(z) gets noise of σ_J before pixels are refined."""
    config = dataclasses.replace(LATENT, refinement=STILL, chain=dataclasses.replace(LATENT.chain, sampling_steps=2))
    state = state_of(config)
    average, n = state.ema, 64
    made = sampled(config, state)

    def ends(key):  # the same draws through the chain itself
        start_key, chain_key, *_ = jax.random.split(key, 4)
        start = jax.random.normal(start_key, (6,))
        energy = jax.tree_util.Partial(lambda params, z, sigma: semantic(params, z, sigma), average)
        return chains.anneal_semantic(chain_key, energy, start, LADDER[:2], config.chain, latent=True)

    z = jax.jit(jax.vmap(ends))(mcmc.chain_keys(key_of(6), n))
    np.testing.assert_allclose(made.semantic, 2 * np.asarray(decoded(average, z)) - 1, atol=1e-4)
    noise = 0.5 * (made.steps[:, 0] - made.semantic) / 0.15
    normals(noise, np.random.default_rng(SEED).standard_normal(noise.shape))
    only = sampled(dataclasses.replace(config, sampling="semantic_only"), state)
    np.testing.assert_allclose(only.images, only.semantic, atol=1e-6)


# energies and scores


@pytest.mark.parametrize("config", [PIXEL, LATENT], ids=["pixel", "latent"])
def test_energies_and_scores_by_value(config):
    """All of the averaged weights; E_sem = F/τ with τ = (bσ)² on pixels, the same at all levels on latents."""
    state, images, key = state_of(config), batch_of(9), key_of(9)
    average, x, latent = state.ema, 0.5 * (images + 1), config.semantic_chain == "latent"
    method = build(config)

    def of(a, sigma):  # F of images
        a = encoded(average, a, np.full(BATCH, sigma, np.float32)) if latent else a
        return np.asarray(semantic(average, a, np.full(BATCH, sigma, np.float32)))

    def texture(sigma):
        return 0.5 * np.sum(np.asarray(predicted(average, x, np.full(BATCH, sigma, np.float32))) ** 2, (1, 2, 3))

    tau = (lambda sigma: 0.3) if latent else (lambda sigma: (0.3 * sigma) ** 2)
    parts = jax.jit(functools.partial(part_energies, config))
    for sigma in (0.3, 0.11):
        found = parts(state, images, sigma)
        np.testing.assert_allclose(found["semantic"], of(x, sigma) / tau(sigma), rtol=1e-4)
        np.testing.assert_allclose(found["texture"], texture(sigma), rtol=1e-4)
    at_score = of(x, 0.3) / tau(0.3)
    np.testing.assert_allclose(
        jax.jit(lambda s, x: jax.vmap(method.energy(s))(x))(state, images), at_score + 1.7 * texture(0.3), rtol=1e-4
    )

    denoising_key, noise_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(noise_key, x.shape))
    losses = jax.jit(functools.partial(denoising_losses, config))(
        draw_noise(config, denoising_key, x.shape), average, x
    )
    expected = {
        **losses, "semantic_energy": at_score.mean(),
        "texture_energy": texture(0.3).mean(),
        "semantic_contrast": np.mean([
            of(x + above * noise, sigma).mean() - of(x + sigma * noise, sigma).mean()
            for above, sigma in zip(LADDER[:-1], LADDER[1:], strict=True)
        ]),
    }  # fmt: skip
    found = jax.jit(method.scores)(key, state, images)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


def test_reconstructions_and_the_generator_are_of_averaged_weights():
    state, images, z = state_of(LATENT), batch_of(3), random_like(np.zeros((2, 6)), 7)
    average = state.ema
    again = np.asarray(decoded(average, encoded(average, 0.5 * (images + 1), np.full(BATCH, 0.05, np.float32))))
    found = jax.jit(lambda state: build(LATENT).reconstruct(key_of(0), state, images))(state)
    np.testing.assert_allclose(found, 2 * again - 1, atol=1e-5)
    found = jax.jit(lambda state, z: jax.vmap(generator_of(LATENT, state))(z))(state, z)
    np.testing.assert_allclose(found, 2 * np.asarray(decoded(average, z)) - 1, atol=1e-5)
    assert build(PIXEL).generator is build(PIXEL).latent_shape is build(PIXEL).reconstruct is None
    assert build(LATENT).latent_shape == (6,)
    assert build(LATENT).networks(state) == state.networks
