"""Denoising-EBM (Zeng, arXiv 2303.03887), reconstructed: a semantic energy, a texture energy, two-stage sampling.

**What the paper states** (read in its abstract and introduction; the equations, sizes and tables of its body are not
at hand): an image's energy is a semantic part, in the latent space of a denoising autoencoder, plus a texture part,
the pixel-level reconstruction error of denoising; it is trained by maximum likelihood on noisy samples at several
scales, an idea of score-based models; the output is a vector rather than a scalar; sampling has two stages, fast MCMC
on the semantic energy for a "semantic image", then its pixel-level refinement by the texture energy.

**What is ours**: all formulas, networks, numbers and the following choices. No result of the paper is claimed or
replicated.

With x in [0, 1], noise levels σ in that unit, ``x̃ = x + σ n``, and the networks u (U-Net), f, g (compact encoder and
decoder), h (head of F):

    L = L_ml + λ_d L_dae + α L_reg

    L_ml  = mean_i ( mean F(x̃⁺, σ_i) - mean F(x̃⁻, σ_i) )    σ_i: few levels; x̃⁻ from short chains (`denoising_chains`)
    L_dae = ½ mean (u(x̃, σ) + n)²                            σ log-uniform over the whole ladder
    L_reg = mean F(x̃⁺)² + mean F(x̃⁻)²

``semantic_chain="pixel"``: F(x̃, σ) reads the bottleneck of the U-Net, chains move images, and L_ml trains the U-Net's
way down and the head. ``"latent"``: F(z, σ) is a function of z = f(x̃, σ), chains move z, and g(z) is the semantic
image; f and g are trained as a denoising autoencoder, ``½ mean ((g(f(x̃, σ)) - x)/σ)²`` added to L_dae. There
L_ml trains the head alone: the likelihood is that of z, and an encoder that took its gradient would move the data
instead of the density. L_ml never reaches the texture energy, since at small σ the denoiser best in squared error is
not the best in likelihood.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jebm import mcmc
from jebm.energy import Energy, Generator, bind
from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods import accumulation, diagnostics
from jebm.methods.base import Method, Metrics
from jebm.methods.denoising import chains as chains
from jebm.methods.denoising import energies as parts
from jebm.methods.denoising.model import (
    DenoisingEBMConfig,
    Tree,
    compact_predictor,
    decode,
    encode,
    image_decoder,
    noise_predictor,
    semantic_function,
    semantic_levels,
    wide,
)
from jebm.methods.denoising.sampling import evaluation_counts, generate
from jebm.methods.denoising.state import DenoisingEBMState, initialize, optimizer
from jebm.methods.shared import descend, warm_up

__all__ = [
    "DenoisingEBMConfig", "DenoisingEBMState", "Draws", "Examples", "build", "denoising_losses", "draw", "draw_noise",
    "energy", "examples", "generator_of", "iterate", "likelihood_loss", "part_energies", "reconstruct", "scores",
]  # fmt: skip


NoiseDraws = dict[str, tuple[Array, Array]]
"""Levels σ [B] and standard normals [B, H, W, C] of each denoising loss."""


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        indices: distinct rows of the bank [B], or None without one.
        levels: of the likelihood, int32 [B]; where there is a bank its rows' own levels are used.
        data: standard normals of the positives' noise [B, H, W, C].
        start: standard normals of the fresh starts [B, H, W, C].
        latent: standard normals [B, latent_size] of fresh starts at the highest level; None where chains move pixels.
        exchange_key: of the bank's rejuvenation.
        chain_key: of the chains.
        denoising: see `denoising_losses`.
    """

    indices: Array | None
    levels: Array
    data: Array
    start: Array
    latent: Array | None
    exchange_key: Array
    chain_key: Array
    denoising: NoiseDraws


def likelihood_loss(
    semantic: chains.SemanticFunction, positives: Array, negatives: Array, sigmas: Array
) -> tuple[Array, Array, Metrics]:
    """``mean (F(x⁺, σ) - F(x⁻, σ))`` and ``mean F(x⁺)² + mean F(x⁻)²`` over rows, each at its own level.

    With negatives of ``exp(-F/τ)`` a row's gradient is τ times that of ``-log p_σ(x⁺)``.

    Args:
        semantic: F.
        positives: noisy data [B, ...].
        negatives: ends of chains [B, ...]; no gradient flows into them.
        sigmas: [B].

    Returns:
        L_ml, L_reg, and the two mean energies.
    """
    on_data = jax.vmap(semantic)(positives, sigmas)
    on_negatives = jax.vmap(semantic)(jax.lax.stop_gradient(negatives), sigmas)
    regularization = jnp.mean(jnp.square(on_data)) + jnp.mean(jnp.square(on_negatives))
    metrics = {"energy_data": jnp.mean(on_data), "energy_negative": jnp.mean(on_negatives)}
    return metrics["energy_data"] - metrics["energy_negative"], regularization, metrics


class Examples(NamedTuple):
    """Rows of one likelihood step: noisy data, ends of chains, levels, and the bank after."""

    positives: Array
    starts: Array
    negatives: Array
    sigmas: Array
    bank: Bank | None


def draw(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Draws:
    """The randomness of one iteration, from one key."""
    likelihood_key, denoising_key = jax.random.split(key)
    bank_key, level_key, noise_key, start_key, exchange_key, chain_key, latent_key = jax.random.split(likelihood_key, 7)
    n = len(images)
    return Draws(
        indices=None if state.bank is None else bank.draw(bank_key, state.bank, n)[0],
        levels=jax.random.randint(level_key, (n,), 0, config.semantic_levels),
        data=jax.random.normal(noise_key, images.shape),
        start=jax.random.normal(start_key, images.shape),
        latent=jax.random.normal(latent_key, (n, config.latent_size)) if config.semantic_chain == "latent" else None,
        exchange_key=exchange_key,
        chain_key=chain_key,
        denoising=draw_noise(config, denoising_key, images.shape),
    )


def examples(
    config: DenoisingEBMConfig, draws: Draws, state: DenoisingEBMState, x: Array, microbatches: int = 1
) -> Examples:
    """Positives and negatives from a batch of clean images [B, H, W, C] in [0, 1]."""
    latent, ladder = config.semantic_chain == "latent", semantic_levels(config)
    levels, rows = draws.levels, None
    if state.bank is not None:
        assert draws.indices is not None
        rows = bank.read(state.bank, draws.indices)
        levels = rows["level"]
    sigmas, above = jnp.asarray(ladder, jnp.float32)[levels], _level_above(ladder)[levels]
    noisy = x + wide(sigmas) * draws.data
    gaps = chains.recovery_gaps(ladder)[levels]

    # fresh starts: one level noisier, of another image, or of the same one in the recovery likelihood
    from_noise = 0.5 + config.highest_semantic * draws.start
    starts = jnp.roll(x, 1, 0) + wide(above) * draws.start
    if config.negatives == "recovery":
        starts = noisy + wide(jnp.where(jnp.isfinite(gaps), gaps, 0.0)) * draws.start
    starts = jnp.where(wide(levels) == 0, from_noise, starts)
    if draws.latent is not None:
        code = functools.partial(encode, config, state.params)
        noisy = accumulation.by_rows(code, microbatches, noisy, sigmas)
        starts = accumulation.by_rows(code, microbatches, starts, above)
        starts = jnp.where(levels[:, None] == 0, draws.latent, starts)
    ages = None
    if state.bank is not None and rows is not None:
        old = state.bank.ages[draws.indices]
        starts, ages = bank.rejuvenate(draws.exchange_key, rows["x"], old, starts, config.rejuvenation)

    def chain(key: Array, start: Array, sigma: Array, gap: Array) -> Array:
        gap_or_none = gap if config.negatives == "recovery" else None
        return chains.run_level(key, semantic, start, sigma, config.chain, latent=latent, gap=gap_or_none)

    semantic = semantic_function(config, state.params)
    keys = mcmc.chain_keys(draws.chain_key, len(x))
    negatives = accumulation.by_rows(jax.vmap(chain), microbatches, keys, starts, sigmas, gaps)
    new_bank = state.bank
    if new_bank is not None:
        assert draws.indices is not None
        new_bank = bank.replace(new_bank, draws.indices, {"x": negatives, "level": levels}, ages)
    return Examples(noisy, starts, negatives, sigmas, new_bank)


def _level_above(ladder: np.ndarray) -> Array:
    return jnp.asarray(np.concatenate([ladder[:1], ladder[:-1]]), jnp.float32)


def draw_noise(config: DenoisingEBMConfig, key: Array, shape: tuple[int, ...]) -> NoiseDraws:
    """Log-uniform levels, over the whole ladder of the U-Net and the semantic ladder of the autoencoder, and noise."""
    ranges = {"denoising_loss": (config.sigma_min, config.sigma_max)}
    if config.semantic_chain == "latent":
        ranges["autoencoder_loss"] = (config.semantic_sigma_min, config.highest_semantic)
    draws: NoiseDraws = {}
    for i, (name, (lowest, highest)) in enumerate(ranges.items()):
        level_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        log_sigma = jax.random.uniform(level_key, shape[:1], minval=np.log(lowest), maxval=np.log(highest))
        draws[name] = (jnp.exp(log_sigma), jax.random.normal(noise_key, shape))
    return draws


def denoising_losses(config: DenoisingEBMConfig, draws: NoiseDraws, params: Tree, x: Array) -> Metrics:
    """``½ mean (u + n)²``, and of the compact autoencoder ``½ mean ((g(f(x̃, σ)) - x)/σ)²``; x [B, H, W, C] in [0, 1].

    Args:
        config: the configuration.
        draws: levels and noise of ``denoising_loss``, and on latents of ``autoencoder_loss``.
        params: parameters of each network.
        x: clean images.
    """
    predictors: dict[str, parts.NoisePredictor] = {"denoising_loss": noise_predictor(config, params)}
    if config.semantic_chain == "latent":
        predictors["autoencoder_loss"] = compact_predictor(config, params)
    return {name: parts.denoising_loss(predictor, x, *draws[name]) for name, predictor in predictors.items()}


def iterate(
    config: DenoisingEBMConfig, draws: Draws, state: DenoisingEBMState, images: Array, microbatches: int = 1
) -> tuple[DenoisingEBMState, Metrics]:
    """One training iteration on images in [-1, 1]; see the module's docstring."""
    x = 0.5 * (images + 1.0)
    rows = examples(config, draws, state, x, microbatches)

    def loss(params: Tree, x: Array, noise: NoiseDraws, of_chains: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        denoising = denoising_losses(config, noise, params, x)
        semantic = semantic_function(config, params)
        likelihood, regularization, metrics = likelihood_loss(semantic, *of_chains)
        total = likelihood + config.energy_regularization * regularization
        return total + config.denoising_weight * sum(denoising.values()), (metrics | denoising, ())

    of_chains = (rows.positives, rows.negatives, rows.sigmas)
    gradients, metrics, _ = accumulation.gradients(loss, microbatches, state.params, x, draws.denoising, of_chains)
    decay = warm_up(config.ema_decay, state.step)
    new = DenoisingEBMState(
        networks={
            name: descend(network, gradients[name], optimizer(config), decay)
            for name, network in state.networks.items()
        },
        bank=rows.bank,
        step=state.step + 1,
    )
    metrics |= {f"{name}_gradient_norm": optax.tree.norm(gradient) for name, gradient in gradients.items()}
    metrics |= {"energy_gap": metrics["energy_data"] - metrics["energy_negative"]}
    metrics |= diagnostics.displacement(rows.starts, rows.negatives)
    semantic = semantic_function(config, state.params)
    metrics |= diagnostics.gradient_norms(semantic, rows.positives, rows.negatives, rows.sigmas)
    if rows.bank is not None:
        metrics["bank_age"] = rows.bank.ages.astype(jnp.float32).mean()
    return new, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def _part_energies(config: DenoisingEBMConfig, params: Tree, sigma: Array, image: Array) -> dict[str, Array]:
    x = 0.5 * (image + 1.0)
    z = encode(config, params, x, sigma) if config.semantic_chain == "latent" else x
    tau = chains.temperature(config.chain, sigma, config.semantic_chain == "latent")
    # the value's own gradient: the detached drift is that of no density
    texture = parts.texture(noise_predictor(config, params), sigma, detach=False)
    return {"semantic": semantic_function(config, params)(z, sigma) / tau, "texture": texture(x)}


def part_energies(
    config: DenoisingEBMConfig, state: DenoisingEBMState, images: Array, sigma: Array | float
) -> dict[str, Array]:
    """``{"semantic": F/τ, "texture": E_tex}`` of each image [n] as it is, taken to have noise σ; averaged weights."""
    level = jnp.asarray(sigma, jnp.float32)
    return jax.vmap(functools.partial(_part_energies, config, state.ema, level))(images)


def energy(config: DenoisingEBMConfig, params: Tree, image: Array) -> Array:
    """``E_sem + λ_t E_tex`` of one image at σ*, float32."""
    terms = _part_energies(config, params, jnp.asarray(config.score_sigma, jnp.float32), image)
    return terms["semantic"] + config.texture_weight * terms["texture"]


def generator_of(config: DenoisingEBMConfig, state: DenoisingEBMState) -> Generator:
    """``2 g(z) - 1`` of one latent, which g puts on its sphere, averaged weights.

    [ours] It is the semantic stage without its chain: that chain starts from z ~ N(0, I), which is not its law.
    """
    return image_decoder(config, state.ema)


def reconstruct(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Array:
    """``g(f(x, σ))`` at the lowest semantic level, averaged weights; ``key`` is not used."""
    del key
    x = 0.5 * (images + 1.0)
    sigma = jnp.full(x.shape[:1], config.semantic_sigma_min)
    return 2.0 * decode(config, state.ema, encode(config, state.ema, x, sigma)) - 1.0


def scores(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Metrics:
    """Held-out scores, averaged weights.

    The denoising losses; both energies at σ*; and ``semantic_contrast``, mean F of images with the noise of one level
    above minus mean F at their own, over the levels: above 0 where F distinguishes the noisier one.
    """
    x = 0.5 * (images + 1.0)
    denoising_key, noise_key = jax.random.split(key)
    ladder, latent = semantic_levels(config), config.semantic_chain == "latent"
    semantic = jax.vmap(semantic_function(config, state.ema), (0, None))
    noise = jax.random.normal(noise_key, x.shape)

    def contrast(levels: Array) -> Array:
        above, sigma = levels
        both = [x + s * noise for s in (above, sigma)]
        if latent:
            both = [encode(config, state.ema, a, jnp.full(len(a), sigma)) for a in both]
        noisier, own = (jnp.mean(semantic(a, sigma)) for a in both)
        return noisier - own

    neighbours = jnp.asarray(np.stack([ladder[:-1], ladder[1:]], 1), jnp.float32)
    energies = part_energies(config, state, images, config.score_sigma)
    return {
        **denoising_losses(config, draw_noise(config, denoising_key, x.shape), state.ema, x),
        "semantic_energy": jnp.mean(energies["semantic"]),
        "texture_energy": jnp.mean(energies["texture"]),
        "semantic_contrast": jnp.mean(jax.lax.map(contrast, neighbours)) if len(ladder) > 1 else jnp.zeros(()),
    }


def build(config: DenoisingEBMConfig) -> Method:
    """The method of a configuration."""
    of_latents = config.semantic_chain == "latent"
    one_energy = functools.partial(energy, config)

    def bound(state: DenoisingEBMState) -> Energy:
        return bind(one_energy, state.ema)

    def update(
        key: Array, state: DenoisingEBMState, images: Array, microbatches: int = 1
    ) -> tuple[DenoisingEBMState, Metrics]:
        return iterate(config, draw(config, key, state, images), state, images, microbatches)

    return Method(
        image_shape=config.image_shape,
        init=functools.partial(initialize, config),
        update=update,
        generate=functools.partial(generate, config),
        energy=bound,
        scores=functools.partial(scores, config),
        networks=lambda state: dict(state.networks),
        reconstruct=functools.partial(reconstruct, config) if of_latents else None,
        generator=functools.partial(generator_of, config) if of_latents else None,
        latent_shape=(config.latent_size,) if of_latents else None,
        temperature=config.score_temperature,
        evaluations_per_image=sum(evaluation_counts(config).values()),
        whole_batch=None,
    )
