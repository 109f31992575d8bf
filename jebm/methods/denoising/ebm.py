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
from jebm.energy import Generator
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods import diagnostics
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
    initial_parameters,
    noise_predictor,
    semantic_function,
    semantic_levels,
    wide,
)

__all__ = [
    "DenoisingEBMConfig", "DenoisingEBMState", "Examples", "Synthesis", "build", "denoising_losses", "energy",
    "evaluation_counts", "examples", "generate", "generator_of", "initialize", "likelihood_loss", "part_energies",
    "reconstruct", "scores", "synthesize", "update",
]  # fmt: skip


class DenoisingEBMState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        params: parameters of each network of `Networks`.
        average: their moving average.
        optimizer: Adam's state, likewise.
        bank: ends of chains ``{"x", "level"}``, or None.
        step: int32, iterations made.
    """

    params: Any
    average: Any
    optimizer: Any
    bank: Bank | None
    step: Array


def initialize(config: DenoisingEBMConfig, key: Array, batch: Array) -> DenoisingEBMState:
    """A fresh state; ``batch`` gives the image shape and the batch size.

    Raises:
        ConfigError: data of another shape than the configuration's.
    """
    if batch.shape[1:] != config.image_shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects "
            f"{config.image_shape}: set method.image_size and method.channels, or another data.source"
        )
    params_key, bank_key = jax.random.split(key)
    params = initial_parameters(config, params_key)
    return DenoisingEBMState(
        params=params,
        average=jax.tree.map(jnp.array, params),
        optimizer={name: optimizer(config).init(tree) for name, tree in params.items()},
        bank=_initial_bank(config, bank_key, batch.shape[0]) if config.negatives == "bank" else None,
        step=jnp.zeros((), jnp.int32),
    )


def _initial_bank(config: DenoisingEBMConfig, key: Array, batch_size: int) -> Bank:
    """Noise at every level's row: the first draws are as far from the data as a chain can start."""
    size = bank.divisible_size(config.bank_size * config.semantic_levels, batch_size)
    shape = (config.latent_size,) if config.semantic_chain == "latent" else config.image_shape
    x = jax.random.normal(key, (size, *shape))
    if config.semantic_chain == "pixel":
        x = 0.5 + config.highest_semantic * x
    return bank.init({"x": x, "level": jnp.arange(size, dtype=jnp.int32) % config.semantic_levels})


def optimizer(config: DenoisingEBMConfig) -> optax.GradientTransformation:
    """Adam behind the clip, its rate warming up; one for each network."""
    rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps) if config.warmup_steps else None
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.adam(rate or config.learning_rate, b1=config.b1)
    )


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


def examples(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, x: Array) -> Examples:
    """Positives and negatives from a batch of clean images in [0, 1] [B, H, W, C]."""
    latent, ladder = config.semantic_chain == "latent", semantic_levels(config)
    bank_key, level_key, noise_key, start_key, exchange_key, chain_key, latent_key = jax.random.split(key, 7)
    n, rows = x.shape[0], None
    levels = jax.random.randint(level_key, (n,), 0, len(ladder))
    if state.bank is not None:
        indices, rows = bank.draw(bank_key, state.bank, n)
        levels = rows["level"]
    sigmas, above = jnp.asarray(ladder, jnp.float32)[levels], _level_above(ladder)[levels]
    noise = jax.random.normal(noise_key, x.shape)
    noisy = x + wide(sigmas) * noise
    gaps = chains.recovery_gaps(ladder)[levels]

    # fresh starts: one level noisier, of another image, or of the same one in the recovery likelihood
    other = jax.random.normal(start_key, x.shape)
    from_noise = 0.5 + config.highest_semantic * other
    starts = jnp.roll(x, 1, 0) + wide(above) * other
    if config.negatives == "recovery":
        starts = noisy + wide(jnp.where(jnp.isfinite(gaps), gaps, 0.0)) * other
    starts = jnp.where(wide(levels) == 0, from_noise, starts)
    if latent:
        noisy, starts = encode(config, state.params, noisy, sigmas), encode(config, state.params, starts, above)
        random = jax.random.normal(latent_key, starts.shape)
        starts = jnp.where(levels[:, None] == 0, random, starts)
    ages = None
    if state.bank is not None and rows is not None:
        starts, ages = bank.rejuvenate(exchange_key, rows["x"], state.bank.ages[indices], starts, config.rejuvenation)

    def chain(key: Array, start: Array, sigma: Array, gap: Array) -> Array:
        gap_or_none = gap if config.negatives == "recovery" else None
        return chains.run_level(key, semantic, start, sigma, config.chain, latent=latent, gap=gap_or_none)

    semantic = semantic_function(config, state.params)
    negatives = jax.vmap(chain)(mcmc.chain_keys(chain_key, n), starts, sigmas, gaps)
    new_bank = state.bank
    if new_bank is not None:
        new_bank = bank.replace(new_bank, indices, {"x": negatives, "level": levels}, ages)
    return Examples(noisy, starts, negatives, sigmas, new_bank)


def _level_above(ladder: np.ndarray) -> Array:
    return jnp.asarray(np.concatenate([ladder[:1], ladder[:-1]]), jnp.float32)


def denoising_losses(config: DenoisingEBMConfig, params: Tree, key: Array, x: Array) -> Metrics:
    """``½ mean (u + n)²``, and of the compact autoencoder ``½ mean ((g(f(x̃, σ)) - x)/σ)²``; x [B, H, W, C] in [0, 1].

    σ is log-uniform, over the whole ladder of the U-Net, and over the semantic ladder of the autoencoder.
    """
    predictors: list[tuple[str, parts.NoisePredictor, float, float]] = [
        ("denoising_loss", noise_predictor(config, params), config.sigma_min, config.sigma_max)
    ]
    if config.semantic_chain == "latent":
        compact = compact_predictor(config, params)
        predictors.append(("autoencoder_loss", compact, config.semantic_sigma_min, config.highest_semantic))
    losses = {}
    for i, (name, predictor, lowest, highest) in enumerate(predictors):
        level_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        log_sigma = jax.random.uniform(level_key, x.shape[:1], minval=np.log(lowest), maxval=np.log(highest))
        losses[name] = parts.denoising_loss(predictor, x, jnp.exp(log_sigma), jax.random.normal(noise_key, x.shape))
    return losses


def update(
    config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, batch: Array
) -> tuple[DenoisingEBMState, Metrics]:
    """One training iteration on images in [-1, 1]; see the module's docstring."""
    x = 0.5 * (batch + 1.0)
    likelihood_key, denoising_key = jax.random.split(key)
    rows = examples(config, likelihood_key, state, x)

    def loss(params: Tree) -> tuple[Array, Metrics]:
        denoising = denoising_losses(config, params, denoising_key, x)
        semantic = semantic_function(config, params)
        likelihood, regularization, metrics = likelihood_loss(semantic, rows.positives, rows.negatives, rows.sigmas)
        total = likelihood + config.energy_regularization * regularization
        return total + config.denoising_weight * sum(denoising.values()), metrics | denoising

    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    params, optimizer_state = {}, {}
    for name, gradient in gradients.items():
        updates, optimizer_state[name] = optimizer(config).update(gradient, state.optimizer[name], state.params[name])
        params[name] = optax.apply_updates(state.params[name], updates)
        metrics[f"{name}_gradient_norm"] = optax.tree.norm(gradient)
    decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    metrics |= {"energy_gap": metrics["energy_data"] - metrics["energy_negative"]}
    metrics |= diagnostics.displacement(rows.starts, rows.negatives)
    semantic = semantic_function(config, state.params)
    metrics |= diagnostics.gradient_norms(semantic, rows.positives, rows.negatives, rows.sigmas)
    if rows.bank is not None:
        metrics["bank_age"] = rows.bank.ages.astype(jnp.float32).mean()
    new = DenoisingEBMState(
        params=params,
        average=optax.incremental_update(params, state.average, 1.0 - decay),
        optimizer=optimizer_state,
        bank=rows.bank,
        step=state.step + 1,
    )
    return new, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


class Synthesis(NamedTuple):
    """Samples and how they came about, [n, ...], in [-1, 1].

    Attributes:
        semantic: the semantic image: the end of a chain on pixels, with noise of about σ_J; or g(z). None in
            texture-only sampling.
        steps: refinement every so many steps [n, k, H, W, C]; or None.
        images: the samples.
    """

    semantic: Array | None
    steps: Array | None
    images: Array


def _stages(config: DenoisingEBMConfig) -> tuple[np.ndarray, np.ndarray]:
    """The levels of the two stages; either may be empty."""
    none, levels = np.zeros(0), semantic_levels(config)
    start = config.refinement.sigma_start
    if config.sampling == "semantic_only":
        return levels, none
    if config.sampling == "texture_only":
        return none, config.refinement.ladder(config.sigma_max, config.sigma_min, config.dimension)
    fine = config.refinement.ladder(start, config.sigma_min, config.dimension)
    return levels[levels >= start * (1.0 - 1e-9)], fine


def evaluation_counts(config: DenoisingEBMConfig) -> dict[str, int]:
    """What one image costs: gradients of F, evaluations of u (or its gradients, with the full drift), and of g."""
    coarse, fine = _stages(config)
    return {
        "semantic": len(coarse) * config.chain.when_sampling().num_steps,
        "texture": config.refinement.evaluations(len(fine)) if len(fine) else 0,
        "decoder": int(config.semantic_chain == "latent" and len(coarse) > 0),
    }


def synthesize(
    config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, n: int, positions_every: int = 0
) -> Synthesis:
    """``n`` samples with averaged weights; sample i does not depend on ``n``.

    Args:
        config: its field ``sampling`` says which stages.
        key: a typed key.
        state: trained.
        n: how many; static.
        positions_every: n > 0 records every n-th step of the refinement.
    """
    coarse, fine = _stages(config)
    latent = config.semantic_chain == "latent"
    predictor = noise_predictor(config, state.average)

    def one(key: Array) -> tuple[Array | None, Array | None, Array]:
        start_key, chain_key, noise_key, refine_key = jax.random.split(key, 4)
        noise = jax.random.normal(noise_key, config.image_shape)
        semantic, steps, x = None, None, 0.5 + config.sigma_max * noise
        if len(coarse):
            start = jax.random.normal(start_key, (config.latent_size,) if latent else config.image_shape)
            x = chains.anneal_semantic(
                chain_key, semantic_function(config, state.average),
                start if latent else 0.5 + config.highest_semantic * start, coarse, config.chain,
                latent=latent, recovery=config.negatives == "recovery",
            )  # fmt: skip
            semantic = x = decode(config, state.average, x) if latent else x
            if latent and len(fine):
                x = x + fine[0] * noise  # a chain on pixels has its noise already
        if len(fine):
            x, steps = chains.refine(refine_key, predictor, x, fine, config.refinement, positions_every=positions_every)
        return semantic, steps, jnp.clip(x, 0.0, 1.0)

    results = jax.vmap(one)(mcmc.chain_keys(key, n))
    return Synthesis(*jax.tree.map(lambda a: 2.0 * a - 1.0, results))


def generate(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, n: int) -> Array:
    """``n`` samples; see `synthesize`."""
    return synthesize(config, key, state, n).images


def part_energies(
    config: DenoisingEBMConfig, state: DenoisingEBMState, images: Array, sigma: Array | float
) -> dict[str, Array]:
    """``{"semantic": F/τ, "texture": E_tex}`` of each image [n] as it is, taken to have noise σ; averaged weights."""
    latent = config.semantic_chain == "latent"
    predictor = noise_predictor(config, state.average)
    semantic = semantic_function(config, state.average)
    level = jnp.asarray(sigma, jnp.float32)
    tau = chains.temperature(config.chain, sigma, latent)

    def one(image: Array) -> dict[str, Array]:
        x = 0.5 * (image + 1.0)
        z = encode(config, state.average, x, level) if latent else x
        return {"semantic": semantic(z, level) / tau, "texture": parts.texture(predictor, sigma)(x)}

    return jax.vmap(one)(images)


def energy(config: DenoisingEBMConfig, state: DenoisingEBMState, images: Array) -> Array:
    """``E_sem + λ_t E_tex`` of each image [n] at σ*, float32."""
    of = part_energies(config, state, images, config.score_sigma)
    return of["semantic"] + config.texture_weight * of["texture"]


def generator_of(config: DenoisingEBMConfig, state: DenoisingEBMState) -> Generator | None:
    """``2 g(z) - 1`` of one latent, which g puts on its sphere, averaged weights; None where chains walk pixels.

    [ours] It is the semantic stage without its chain: z ~ N(0, I) is what that chain starts from, not its law.
    """
    if config.semantic_chain == "pixel":
        return None
    return image_decoder(config, state.average)


def reconstruct(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Array:
    """``g(f(x, σ))`` at the lowest semantic level, averaged weights; ``key`` is not used."""
    del key
    x = 0.5 * (images + 1.0)
    sigma = jnp.full(x.shape[:1], config.semantic_sigma_min)
    return 2.0 * decode(config, state.average, encode(config, state.average, x, sigma)) - 1.0


def scores(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Metrics:
    """Held-out scores, averaged weights.

    The denoising losses; both energies at σ*; and ``semantic_contrast``, mean F of images with the noise of one level
    above minus mean F at their own, over the levels: above 0 where F tells which is noisier.
    """
    x = 0.5 * (images + 1.0)
    denoising_key, noise_key = jax.random.split(key)
    ladder, latent = semantic_levels(config), config.semantic_chain == "latent"
    semantic = jax.vmap(semantic_function(config, state.average), (0, None))
    noise = jax.random.normal(noise_key, x.shape)

    def contrast(levels: Array) -> Array:
        above, sigma = levels
        both = [x + s * noise for s in (above, sigma)]
        if latent:
            both = [encode(config, state.average, a, jnp.full(len(a), sigma)) for a in both]
        noisier, own = (jnp.mean(semantic(a, sigma)) for a in both)
        return noisier - own

    neighbours = jnp.asarray(np.stack([ladder[:-1], ladder[1:]], 1), jnp.float32)
    of = part_energies(config, state, images, config.score_sigma)
    return {
        **denoising_losses(config, state.average, denoising_key, x),
        "semantic_energy": jnp.mean(of["semantic"]),
        "texture_energy": jnp.mean(of["texture"]),
        "semantic_contrast": jnp.mean(jax.lax.map(contrast, neighbours)) if len(ladder) > 1 else jnp.zeros(()),
    }


def build(config: DenoisingEBMConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)
    return Method(
        init=functools.partial(initialize, config),
        update=functools.partial(update, config),
        generate=functools.partial(generate, config),
        energy=functools.partial(energy, config),
        reconstruct=functools.partial(reconstruct, config) if config.semantic_chain == "latent" else None,
        scores=functools.partial(scores, config),
        parameters=lambda state: dict(state.params),
        evaluations_per_image=sum(evaluation_counts(config).values()),
    )
