"""Denoising-EBM as a method: who learns from which loss, chains' starts, the stages of sampling, counts, mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.commands.configs import parameter_counts
from jebm.config import Config, load_file, override
from jebm.errors import ConfigError
from jebm.methods.denoising import energies as parts
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from jebm.methods.denoising.ebm import (
    DenoisingEBMConfig,
    denoising_losses,
    draw,
    draw_noise,
    examples,
    generator_of,
    likelihood_loss,
    part_energies,
)
from jebm.methods.denoising.model import decode, encode, noise_predictor, semantic_function, semantic_levels
from jebm.methods.denoising.networks import DenoisingUNet, on_sphere
from jebm.methods.denoising.sampling import evaluation_counts, synthesize
from jebm.methods.denoising.state import initialize

pytestmark = pytest.mark.filterwarnings("error")

TINY = DenoisingEBMConfig(
    image_size=8, channels=1, semantic_chain="pixel", width=4, multipliers=(1, 2), num_blocks=1, latent_size=6,
    latent_width=4, head_outputs=3, head_width=8, semantic_levels=3, chain=SemanticChainConfig(num_steps=2),
    refinement=RefinementConfig(num_levels=2, steps_per_level=2), learning_rate=2e-3, warmup_steps=0, bank_size=4,
)  # fmt: skip
LATENT = dataclasses.replace(TINY, semantic_chain="latent")
BATCH = 6
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def images(key, n=BATCH):
    return jnp.tanh(jax.random.normal(key, (n, 8, 8, 1)))


@functools.lru_cache
def fresh(config):
    """A state as training starts; one program per shape of networks, and of the bank."""
    key = jax.random.key(0)
    return jax.jit(functools.partial(initialize, config))(key, images(key))


def with_noise(config):
    """A state whose weights are all away from their start, and their averages elsewhere."""
    neutral = TINY if config.semantic_chain == "pixel" else LATENT
    return _with_noise(dataclasses.replace(neutral, semantic_energy=config.semantic_energy))


@functools.lru_cache
def _with_noise(config):
    state = fresh(config)
    leaves, structure = jax.tree.flatten(state.params)

    @jax.jit
    def move(key, leaves):
        keys = jax.random.split(key, len(leaves))
        return [a + 0.2 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]

    params, average = (jax.tree.unflatten(structure, move(jax.random.key(seed), leaves)) for seed in (0, 1))
    networks = {
        name: network._replace(params=params[name], ema=average[name]) for name, network in state.networks.items()
    }
    return state._replace(networks=networks)


@functools.partial(jax.jit, static_argnums=0)
def encoded(config, params, x, sigmas):
    return encode(config, params, x, sigmas)


@functools.partial(jax.jit, static_argnums=0)
def predicted(config, params, x, sigmas):
    return noise_predictor(config, params)(x, sigmas)


def moved_networks(config, loss, key):
    """The parts of the networks that a loss of the parameters moves."""
    params = with_noise(config).params
    gradient = jax.jit(jax.grad(loss))(params)
    groups = {name: gradient[name] for name in params if name != "unet"}
    groups |= {f"unet/{part}": tree for part, tree in gradient["unet"].items()}
    norms = {name: sum(float(jnp.abs(a).sum()) for a in jax.tree.leaves(tree)) for name, tree in groups.items()}
    return {name for name, norm in norms.items() if norm > 0}


@pytest.mark.parametrize(
    ("config", "learns"),
    [
        slow(TINY, {"unet/encoder", "head"}),
        (dataclasses.replace(TINY, semantic_energy="scalar"), {"unet/encoder", "head"}),
        slow(dataclasses.replace(TINY, semantic_energy="quadratic"), {"unet/encoder", "head"}),
        slow(dataclasses.replace(TINY, semantic_energy="latent_norm"), {"unet/encoder"}),
        (dataclasses.replace(TINY, semantic_energy="latent_recon"), {"unet/encoder"}),
        (LATENT, {"head"}),
        slow(dataclasses.replace(LATENT, semantic_energy="quadratic"), {"head"}),
    ],
    ids=lambda value: f"{value.semantic_chain} {value.semantic_energy}" if hasattr(value, "width") else "",
)
def test_the_likelihood_reaches_only_the_semantic_part(config, learns, key):
    x = 0.5 * (images(key) + 1.0)
    sigmas = jnp.linspace(0.1, 0.9, BATCH)
    rows = x
    if config.semantic_chain == "latent":
        rows = encoded(config, with_noise(config).params, x, sigmas)

    def loss(params):
        semantic = semantic_function(config, params)
        likelihood, regularization, _ = likelihood_loss(semantic, rows, rows[::-1], sigmas)
        return likelihood + regularization

    assert moved_networks(config, loss, key) == learns


@pytest.mark.parametrize(
    ("config", "learns"),
    [(TINY, {"unet/encoder", "unet/decoder"}), (LATENT, {"unet/encoder", "unet/decoder", "encoder", "decoder"})],
    ids=["pixel", "latent"],
)
def test_denoising_reaches_the_autoencoders_alone(config, learns, key):
    x = 0.5 * (images(key) + 1.0)
    loss = lambda params: sum(denoising_losses(config, draw_noise(config, key, x.shape), params, x).values())  # noqa: E731
    assert moved_networks(config, loss, key) == learns


@pytest.mark.parametrize("config", [slow(TINY, id="pixel"), pytest.param(LATENT, id="latent")])
def test_the_update_learns_to_denoise_and_keeps_its_structure(config, key):
    state = fresh(config)
    step = jax.jit(methods.build(config).update)
    losses = []
    for i in range(60):
        new, metrics = step(jax.random.fold_in(key, i), state, images(jax.random.key(i % 3)))
        assert jax.tree.structure(new) == jax.tree.structure(state)
        state = new
        losses.append(float(metrics["denoising_loss"]))
    assert losses[0] == pytest.approx(0.5, abs=0.05)  # u begins near 0
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])  # without learning: within 0.03 of 1
    assert int(state.step) == 60
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())
    averaged = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.ema, state.params)
    assert 0 < max(jax.tree.leaves(averaged)) < 0.1


def test_positives_and_starts_are_one_level_apart(key):
    """Starts are other images with the noise of the level above; the first level starts from pure noise."""
    config = dataclasses.replace(TINY, sigma_max=0.8, semantic_sigma_min=0.05)
    ladder = semantic_levels(config)
    np.testing.assert_allclose(ladder, [0.8, 0.2, 0.05])
    state = fresh(config)
    x = jnp.broadcast_to(jnp.linspace(0.1, 0.9, 300)[:, None, None, None], (300, 8, 8, 1))  # each of its own grey
    rows = jax.jit(lambda k, s, x: examples(config, draw(config, k, s, x), s, x))(key, state, x)
    for i, sigma in enumerate(ladder):
        at = np.flatnonzero(np.isclose(rows.sigmas, sigma))
        assert len(at) > 60
        above = ladder[max(i - 1, 0)]
        centre = 0.5 if i == 0 else jnp.roll(x, 1, 0)[at]
        assert float(jnp.std(rows.positives[at] - x[at])) == pytest.approx(sigma, rel=0.05)
        assert float(jnp.std(rows.starts[at] - centre)) == pytest.approx(above, rel=0.05)
        # two short steps: chains end near where they started, but not there
        moved = float(jnp.std(rows.negatives[at] - rows.starts[at]))
        assert 0.5 * 0.014 * sigma * 2**0.5 < moved < 0.3 * 2 * sigma * 1.1


def test_recovery_starts_from_the_positive_itself(key):
    config = dataclasses.replace(TINY, negatives="recovery", sigma_max=0.8, semantic_sigma_min=0.05)
    state = fresh(config)
    x = jnp.broadcast_to(jnp.linspace(0.1, 0.9, 300)[:, None, None, None], (300, 8, 8, 1))
    rows = jax.jit(lambda k, s, x: examples(config, draw(config, k, s, x), s, x))(key, state, x)
    for above, sigma in [(0.8, 0.2), (0.2, 0.05)]:
        at = np.flatnonzero(np.isclose(rows.sigmas, sigma))
        gap = np.sqrt(above**2 - sigma**2)
        assert float(jnp.std(rows.starts[at] - rows.positives[at])) == pytest.approx(gap, rel=0.05)
        assert float(jnp.std(rows.starts[at] - x[at])) == pytest.approx(above, rel=0.05)


@pytest.mark.parametrize("config", [slow(TINY, id="pixel"), pytest.param(LATENT, id="latent")])
def test_the_bank_keeps_ends_of_chains_with_their_levels(config, key):
    config = dataclasses.replace(config, negatives="bank", rejuvenation=0.0)
    state = fresh(config)
    assert state.bank.size == 12  # 3 levels of 4 rows
    assert np.bincount(state.bank.entries["level"]).tolist() == [4, 4, 4]
    rows = jax.jit(lambda k, s, x: examples(config, draw(config, k, s, x), s, x))(key, state, 0.5 * (images(key) + 1.0))
    changed = np.flatnonzero(np.any(np.asarray(rows.bank.entries["x"] != state.bank.entries["x"]).reshape(12, -1), 1))
    assert len(changed) == BATCH
    np.testing.assert_array_equal(rows.bank.entries["level"], state.bank.entries["level"])
    # chains went on from the bank's rows at the rows' own levels
    levels = jnp.asarray(semantic_levels(config), jnp.float32)[state.bank.entries["level"]]
    for start, sigma, end in zip(rows.starts, rows.sigmas, rows.negatives, strict=True):
        (row,) = np.flatnonzero(np.all(np.asarray(state.bank.entries["x"] == start[None]).reshape(12, -1), 1))
        assert levels[row] == sigma
        np.testing.assert_array_equal(rows.bank.entries["x"][row], end)


@pytest.mark.parametrize("sampling", ["two_stage", "texture_only", "semantic_only"])
@pytest.mark.parametrize("chain", [slow("pixel"), "latent"])
def test_the_stages_of_sampling(chain, sampling, key):
    config = dataclasses.replace(TINY, semantic_chain=chain, sampling=sampling)
    state = with_noise(config)
    draw = jax.jit(functools.partial(synthesize, config), static_argnums=(2, 3))
    made = draw(key, state, 3, 2)
    assert made.images.shape == (3, 8, 8, 1)
    assert np.all(np.abs(made.images) <= 1)
    assert (made.semantic is None) == (sampling == "texture_only")
    if sampling == "semantic_only":
        assert made.steps is None
        np.testing.assert_allclose(made.images, jnp.clip(made.semantic, -1.0, 1.0), atol=1e-6)
    else:
        assert made.steps.shape == (3, 2, 8, 8, 1)
    if sampling == "two_stage":  # the last step denoises what the chain left
        last = 0.5 * (made.steps[:, -1] + 1.0)
        denoised = parts.denoise(lambda x, s: predicted(TINY, state.ema, x, jnp.full(3, s)), last, config.sigma_min)
        np.testing.assert_allclose(made.images, 2.0 * jnp.clip(denoised, 0.0, 1.0) - 1.0, atol=2e-5)
    if sampling != "texture_only" and chain == "latent":
        assert np.all(np.abs(made.semantic) <= 1)  # g(z) is an image
    np.testing.assert_allclose(draw(key, state, 2, 2).images, made.images[:2], atol=1e-5)


def test_counts_of_evaluations():
    paper = DenoisingEBMConfig(chain=SemanticChainConfig())
    assert evaluation_counts(paper) == {"semantic": 120, "texture": 391, "decoder": 1}
    pixel = dataclasses.replace(paper, semantic_chain="pixel")
    assert evaluation_counts(pixel) == {"semantic": 120, "texture": 391, "decoder": 0}
    shorter = dataclasses.replace(paper, chain=SemanticChainConfig(sampling_steps=5))
    assert evaluation_counts(shorter) == {"semantic": 20, "texture": 391, "decoder": 1}
    only = dataclasses.replace(paper, sampling="texture_only")
    assert evaluation_counts(only) == {"semantic": 0, "texture": 601, "decoder": 0}
    only = dataclasses.replace(pixel, sampling="semantic_only")
    assert evaluation_counts(only) == {"semantic": 180, "texture": 0, "decoder": 0}
    assert methods.build(paper).evaluations_per_image == 512


@pytest.mark.parametrize("config", [TINY, LATENT], ids=["pixel", "latent"])
def test_the_energy_is_the_weighted_sum_of_its_parts(config, key):
    config = dataclasses.replace(config, texture_weight=2.5, score_sigma=0.3)
    state, x = with_noise(config), images(key)
    method = methods.build(config)
    parts_of = jax.jit(lambda state, x: part_energies(config, state, x, 0.3))(state, x)
    both = parts_of["semantic"] + 2.5 * parts_of["texture"]
    np.testing.assert_allclose(jax.jit(lambda s, x: jax.vmap(method.energy(s))(x))(state, x), both, rtol=1e-5)
    u = predicted(config, state.ema, 0.5 * (x + 1.0), jnp.full(BATCH, 0.3))
    np.testing.assert_allclose(parts_of["texture"], 0.5 * jnp.sum(u**2, (1, 2, 3)), rtol=1e-4)
    tau = 0.01 if config.semantic_chain == "latent" else (0.01414 * 0.3) ** 2
    z = 0.5 * (x + 1.0)
    if config.semantic_chain == "latent":
        z = encoded(config, state.ema, z, jnp.full(BATCH, 0.3))
    f = jax.jit(jax.vmap(semantic_function(config, state.ema), (0, None)))(z, jnp.asarray(0.3))
    np.testing.assert_allclose(parts_of["semantic"], f / tau, rtol=1e-4)
    scores = jax.jit(method.scores)(key, state, x)
    assert scores["semantic_energy"] == pytest.approx(float(parts_of["semantic"].mean()), rel=1e-4)
    assert all(np.isfinite(float(s)) for s in scores.values())
    assert (method.reconstruct is not None) == (config.semantic_chain == "latent")


def test_latents_have_a_fixed_length(key):
    state = with_noise(LATENT)
    z = encoded(LATENT, state.params, images(key), jnp.linspace(0.1, 0.9, BATCH))
    np.testing.assert_allclose(jnp.sum(z**2, 1), 6.0, rtol=1e-4)
    np.testing.assert_allclose(on_sphere(3.0 * z), z, rtol=1e-4)
    assert np.abs(np.asarray(z[0] - z[1])).max() > 0.1


def test_the_networks_see_the_level_and_one_image_alone(key):
    net = DenoisingUNet(8, (1, 2), 1)
    x, sigma = images(key), jnp.linspace(0.1, 0.9, BATCH)
    params = jax.tree.map(lambda a: a + 0.1, jax.jit(net.init)(key, x[0], sigma[0]))
    apply = jax.jit(net.apply)
    together = apply(params, x, sigma)
    assert (together.shape, together.dtype) == (x.shape, jnp.float32)
    alone = jnp.stack([apply(params, a, s) for a, s in zip(x, sigma, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-4 * float(jnp.abs(alone).max()))
    assert float(jnp.abs(apply(params, x, 0.5 * sigma) - together).max()) > 1e-3
    half = jax.jit(DenoisingUNet(8, (1, 2), 1, jnp.bfloat16).apply)(params, x, sigma)
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - together).max()) < 0.1 * float(jnp.abs(together).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantic_energy": "vectornorm"}, "semantic_energy='vectornorm' is unknown.*there are vec_norm, scalar"),
        ({"semantic_chain": "latent", "semantic_energy": "latent_recon"}, "take one of vec_norm, scalar, quadratic"),
        ({"semantic_chain": "latent", "negatives": "recovery"}, "take 'noisier' or 'bank'"),
        ({"sigma_max": 0.05}, "from 0.05 to 0.08 in 6 levels: levels must fall"),
        ({"sigma_min": 2.0}, "levels must fall"),
        ({"refinement": RefinementConfig(sigma_start=0.005)}, "levels must fall"),
        ({"refinement": RefinementConfig(sigma_start=1.5)}, "no semantic level is left before it"),
        ({"width": 30}, "width=30 is out of range: it must be a multiple of 4"),
        ({"multipliers": ()}, "there must be one multiplier or more"),
        ({"image_size": 20}, "halve between them to 4 px or more"),
        ({"semantic_levels": 0}, "semantic_levels=0 is out of range"),
        ({"score_sigma": 0.0}, "score_sigma=0.0 is out of range"),
        ({"score_sigma": 50.0}, "score_sigma=50.0 is out of range: it must lie in"),
    ],
)
def test_wrong_configurations_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        DenoisingEBMConfig(**changes)
    assert "\n" not in str(caught.value)


def test_assignments_on_the_command_line_are_checked_too():
    config = Config(method=TINY)
    with pytest.raises(ConfigError, match=r"did you mean 'scalar'"):
        override(config, ["method.semantic_energy=scaler"])
    with pytest.raises(ConfigError, match=r"num_steps=0 is out of range"):
        override(config, ["method.chain.num_steps=0"])
    with pytest.raises(ConfigError, match=r"expected one of 'latent', 'pixel'"):
        override(config, ["method.semantic_chain=pixels"])
    with pytest.raises(ConfigError, match=r"the method expects \(8, 8, 1\)"):
        methods.build(TINY).init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize(
    ("stem", "counts"),
    [("cifar10", {"unet": 21_125_507, "head": 789_120}), ("celeba64", {"unet": 42_441_603, "head": 1_313_920})],
)
def test_sizes_of_the_experiments(stem, counts):
    config = load_file(f"configs/denoising_ebm/{stem}.py")
    pixel = override(config, ["method.semantic_chain=pixel"])
    assert counts.items() <= parameter_counts(pixel).items()
    latent = parameter_counts(config)
    assert set(latent) == {"unet", "head", "encoder", "decoder", "total"}


# the decoder as a generator


def test_the_generator_is_the_averaged_decoder_in_the_range_of_images():
    state = with_noise(LATENT)
    z = jax.random.normal(jax.random.key(3), (LATENT.latent_size,))
    image = jax.jit(lambda state, z: generator_of(LATENT, state)(z))(state, z)
    assert image.shape == (8, 8, 1)
    np.testing.assert_allclose(image, 2.0 * decode(LATENT, state.ema, z) - 1.0, atol=1e-5)
    assert float(jnp.abs(image - (2.0 * decode(LATENT, state.params, z) - 1.0)).max()) > 1e-3
    assert methods.build(TINY).generator is None
