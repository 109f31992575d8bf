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

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import Partial

from jebm import bank, mcmc
from jebm.bank import Bank
from jebm.config import ConfigError, check
from jebm.energy import bind
from jebm.methods import denoising_chains as chains
from jebm.methods import denoising_energies as parts
from jebm.methods.base import Method, Metrics
from jebm.methods.denoising_chains import ChainConfig, RefinementConfig
from jebm.networks.denoising_ebm import (
    CompactDecoder,
    CompactEncoder,
    DenoisingUNet,
    LatentHead,
    PooledHead,
    QuadraticHead,
)

__all__ = [
    "DenoisingEBMConfig", "DenoisingEBMState", "Networks", "Synthesis", "build", "evaluation_counts", "initialize",
    "likelihood_loss", "networks", "part_energies", "semantic_function", "semantic_levels", "synthesize", "update",
]  # fmt: skip

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DenoisingEBMConfig:
    """A Denoising-EBM; defaults are for 32x32x3. Noise levels are in units of images in [0, 1].

    Attributes:
        image_size: of the images, a power of 2 that the multipliers can halve to 4 px or more.
        channels: of the images.
        semantic_energy: an entry of `denoising_energies.SEMANTIC_ENERGIES`.
        semantic_chain: where the semantic chains run, see the module's docstring.
        width: channels of the U-Net at full resolution, a multiple of 4.
        multipliers: of the width, per resolution; of both autoencoders.
        num_blocks: residual blocks per resolution of the U-Net (of the compact autoencoder: 1).
        latent_size: of z.
        latent_width: channels of the compact autoencoder at full resolution, a multiple of 4.
        head_outputs: m, numbers in the vector output.
        head_width: hidden units of the head.
        sigma_max: σ_1, of both ladders.
        sigma_min: σ_L, where refinement ends.
        semantic_sigma_min: the smallest level of the semantic ladder.
        semantic_levels: its levels, geometric.
        chain: the semantic chains.
        negatives: where training chains start: ``"noisier"``, other images one level noisier; ``"bank"``, ends of
            earlier chains; ``"recovery"``, the image itself one level noisier, the chain conditional on it (pixels).
        bank_size: rows of the bank for each level.
        rejuvenation: probability that a row of the bank is exchanged for a fresh start.
        denoising_weight: λ_d.
        energy_regularization: α.
        texture_weight: λ_t in ``energy``.
        score_sigma: σ* in ``energy``; choose it without looking at outliers.
        refinement: the second stage.
        sampling: ``"two_stage"``; ``"texture_only"``, refinement from pure noise down the whole ladder; or
            ``"semantic_only"``, the first stage down all its levels (its last noise stays in a chain on pixels).
        learning_rate: Adam's.
        b1: Adam's first moment decay.
        warmup_steps: of the learning rate, linear.
        gradient_clip: bound on the norm of each network's gradient.
        average_decay: of the moving average of all weights that generates and scores; at step t at most
            (1 + t)/(10 + t).
        dtype: in which the networks compute; parameters, chains, noise and energies stay float32.
    """

    image_size: int = 32
    channels: int = 3
    semantic_energy: str = "vec_norm"
    semantic_chain: Literal["latent", "pixel"] = "pixel"
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    latent_size: int = 32
    latent_width: int = 128
    head_outputs: int = 128
    head_width: int = 2048
    sigma_max: float = 1.0
    sigma_min: float = 0.01
    semantic_sigma_min: float = 0.08
    semantic_levels: int = 6
    chain: ChainConfig = ChainConfig()
    negatives: Literal["noisier", "bank", "recovery"] = "noisier"
    bank_size: int = 10_000
    rejuvenation: float = 0.05
    denoising_weight: float = 1.0
    energy_regularization: float = 1.0
    texture_weight: float = 1.0
    score_sigma: float = 0.2
    refinement: RefinementConfig = RefinementConfig()
    sampling: Literal["two_stage", "texture_only", "semantic_only"] = "two_stage"
    learning_rate: float = 1e-4
    b1: float = 0.9
    warmup_steps: int = 1000
    gradient_clip: float = 1.0
    average_decay: float = 0.999
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", width=">=1", num_blocks=">=1", latent_size=">=2", latent_width=">=1",
            head_outputs=">=1", head_width=">=1", sigma_max=">0", sigma_min=">0", semantic_sigma_min=">0",
            semantic_levels=">=1", bank_size=">=1", rejuvenation="in [0, 1)", denoising_weight=">0",
            energy_regularization=">=0", texture_weight=">=0", score_sigma=">0", learning_rate=">0", b1="in [0, 1)",
            warmup_steps=">=0", gradient_clip=">0", average_decay="in [0, 1)",
        )  # fmt: skip
        self._check_sizes()
        entry = parts.semantic_energy(self.semantic_energy)
        if self.semantic_chain == "latent":
            if not entry.latent_chain:
                allowed = [name for name, e in parts.SEMANTIC_ENERGIES.items() if e.latent_chain]
                raise ConfigError(
                    f"semantic_energy={self.semantic_energy!r} is no energy of compact latents: with "
                    f"semantic_chain='latent' take one of {', '.join(allowed)}"
                )
            if self.negatives == "recovery":
                raise ConfigError(
                    "negatives='recovery' conditions on a noisier image: with semantic_chain='latent' take 'noisier' "
                    "or 'bank'"
                )
        ladder = parts.noise_ladder(self.sigma_max, self.semantic_sigma_min, self.semantic_levels)
        parts.noise_ladder(self.sigma_max, self.sigma_min, 2)
        self.refinement.ladder(self.refinement.sigma_start, self.sigma_min, self.dimension)
        if self.refinement.sigma_start > ladder[0]:
            raise ConfigError(
                f"refinement.sigma_start={self.refinement.sigma_start} is above sigma_max={self.sigma_max}: no "
                "semantic level is left before it"
            )

    def _check_sizes(self) -> None:
        for name in ("width", "latent_width"):
            if getattr(self, name) % 4:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: it must be a multiple of 4")
        halvings = len(self.multipliers) - 1
        smallest = self.image_size >> max(halvings, 0)
        if halvings < 0 or min(self.multipliers) < 1 or smallest < 4 or smallest << halvings != self.image_size:
            raise ConfigError(
                f"multipliers={self.multipliers} and image_size={self.image_size}: there must be one multiplier or "
                "more, each >=1, and the image must halve between them to 4 px or more, without rest"
            )

    @property
    def dimension(self) -> int:
        """Numbers in an image."""
        return self.image_size**2 * self.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C]."""
        return (self.image_size, self.image_size, self.channels)


class Networks(NamedTuple):
    """The Linen modules, by the name of their parameters; those that a configuration does not have are None."""

    unet: DenoisingUNet
    head: nn.Module | None
    encoder: CompactEncoder | None
    decoder: CompactDecoder | None


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


@functools.lru_cache
def networks(config: DenoisingEBMConfig) -> Networks:
    """The modules of a configuration."""
    c, dtype, latent = config, jnp.dtype(config.dtype), config.semantic_chain == "latent"
    head: nn.Module | None = None
    kind = parts.semantic_energy(c.semantic_energy).head
    if kind == "quadratic":
        head = QuadraticHead(1 if latent else 3)
    elif kind != "none":
        outputs = c.head_outputs if kind == "vector" else 1
        head = (LatentHead if latent else PooledHead)(outputs, c.head_width)
    encoder = decoder = None
    if latent:
        start_size = c.image_size >> (len(c.multipliers) - 1)
        encoder = CompactEncoder(c.latent_size, c.latent_width, c.multipliers, dtype=dtype)
        decoder = CompactDecoder(c.channels, c.latent_width, c.multipliers, start_size=start_size, dtype=dtype)
    return Networks(DenoisingUNet(c.width, c.multipliers, c.num_blocks, dtype), head, encoder, decoder)


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
    nets = networks(config)
    keys = iter(jax.random.split(key, 5))
    image, sigma, z = jnp.zeros(config.image_shape), jnp.ones(()), jnp.ones(config.latent_size)
    params = {"unet": nets.unet.init(next(keys), image, sigma)["params"]}
    if nets.encoder is not None and nets.decoder is not None:
        params["encoder"] = nets.encoder.init(next(keys), image, sigma)["params"]
        params["decoder"] = nets.decoder.init(next(keys), z)["params"]
    if nets.head is not None:
        if nets.encoder is not None:
            inputs = (z, sigma) if isinstance(nets.head, LatentHead) else (z,)
        else:
            bottleneck = lambda p: nets.unet.apply({"params": p}, image, sigma, method="features")  # noqa: E731
            inputs = (jnp.zeros(jax.eval_shape(bottleneck, params["unet"]).shape),)
        params["head"] = nets.head.init(next(keys), *inputs)["params"]
    return DenoisingEBMState(
        params=params,
        average=jax.tree.map(jnp.array, params),
        optimizer={name: optimizer(config).init(tree) for name, tree in params.items()},
        bank=_initial_bank(config, next(keys), batch.shape[0]) if config.negatives == "bank" else None,
        step=jnp.zeros((), jnp.int32),
    )


def _initial_bank(config: DenoisingEBMConfig, key: Array, batch_size: int) -> Bank:
    """Noise at every level's row: the first draws are as far from the data as a chain can start."""
    size = bank.rounded_size(config.bank_size * config.semantic_levels, batch_size)
    shape = (config.latent_size,) if config.semantic_chain == "latent" else config.image_shape
    x = jax.random.normal(key, (size, *shape))
    if config.semantic_chain == "pixel":
        x = 0.5 + config.sigma_max * x
    return bank.init({"x": x, "level": jnp.arange(size, dtype=jnp.int32) % config.semantic_levels})


def optimizer(config: DenoisingEBMConfig) -> optax.GradientTransformation:
    """Adam behind the clip, its rate warming up; one for each network."""
    rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps) if config.warmup_steps else None
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.adam(rate or config.learning_rate, b1=config.b1)
    )


def semantic_levels(config: DenoisingEBMConfig) -> np.ndarray:
    """The levels of the likelihood, falling."""
    return parts.noise_ladder(config.sigma_max, config.semantic_sigma_min, config.semantic_levels)


def noise_predictor(config: DenoisingEBMConfig, params: Tree) -> Partial:
    """``u(x̃, σ)``."""
    return bind(_apply_unet, _Static(config), params["unet"])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    config: DenoisingEBMConfig


def _apply_unet(static: _Static, params: Tree, x: Array, sigma: Array) -> Array:
    return cast(Array, networks(static.config).unet.apply({"params": params}, x, sigma))


def semantic_function(config: DenoisingEBMConfig, params: Tree) -> Partial:
    """``(x̃, σ) -> F`` of one image, or ``(z, σ) -> F`` of one latent, float32, as `semantic_chain` says."""
    return bind(_semantic, _Static(config), params)


def _semantic(static: _Static, params: Tree, x: Array, sigma: Array) -> Array:
    config, nets = static.config, networks(static.config)
    latent, output = x, None
    if config.semantic_chain == "pixel":
        latent = _bottleneck(static, params, x, sigma)
    if nets.head is not None:
        inputs = (latent, sigma) if isinstance(nets.head, LatentHead) else (latent,)
        output = cast(Array, nets.head.apply({"params": params["head"]}, *inputs))

    def again() -> Array:
        fixed = noise_predictor(config, jax.lax.stop_gradient(params))  # the likelihood does not train the denoiser
        return _bottleneck(static, params, parts.denoise(fixed, x, sigma), sigma)

    return parts.semantic_energy(config.semantic_energy).function(output, latent, again)


def _bottleneck(static: _Static, params: Tree, x: Array, sigma: Array) -> Array:
    unet = networks(static.config).unet
    return cast(Array, unet.apply({"params": params["unet"]}, x, sigma, method="features"))


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
    bank_key, level_key, noise_key, start_key, exchange_key, chain_key = jax.random.split(key, 6)
    n, rows = x.shape[0], None
    levels = jax.random.randint(level_key, (n,), 0, len(ladder))
    if state.bank is not None:
        indices, rows = bank.draw(bank_key, state.bank, n)
        levels = rows["level"]
    sigmas, above = jnp.asarray(ladder, jnp.float32)[levels], _level_above(ladder)[levels]
    noise = jax.random.normal(noise_key, x.shape)
    noisy = x + _wide(sigmas) * noise
    gaps = chains.recovery_gaps(ladder)[levels]

    # fresh starts: one level noisier, of another image, or of the same one in the recovery likelihood
    other = jax.random.normal(start_key, x.shape)
    from_noise = 0.5 + config.sigma_max * other
    starts = jnp.roll(x, 1, 0) + _wide(above) * other
    if config.negatives == "recovery":
        starts = noisy + _wide(jnp.where(jnp.isfinite(gaps), gaps, 0.0)) * other
    starts = jnp.where(_wide(levels) == 0, from_noise, starts)
    if latent:
        noisy, starts = _encode(config, state.params, noisy, sigmas), _encode(config, state.params, starts, above)
        random = jax.random.normal(jax.random.fold_in(start_key, 1), starts.shape)
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


def _compact_predictor(config: DenoisingEBMConfig, params: Tree) -> parts.NoisePredictor:
    """``(g(f(x̃, σ)) - x̃)/σ``: the compact autoencoder as a denoiser."""
    return lambda x, sigma: (_decode(config, params, _encode(config, params, x, sigma)) - x) / _wide(sigma)


def _wide(a: Array) -> Array:
    return a[:, None, None, None]


def _encode(config: DenoisingEBMConfig, params: Tree, x: Array, sigma: Array) -> Array:
    encoder = networks(config).encoder
    assert encoder is not None
    return cast(Array, encoder.apply({"params": params["encoder"]}, x, sigma))


def _decode(config: DenoisingEBMConfig, params: Tree, z: Array) -> Array:
    decoder = networks(config).decoder
    assert decoder is not None
    return cast(Array, decoder.apply({"params": params["decoder"]}, z))


def denoising_losses(config: DenoisingEBMConfig, params: Tree, key: Array, x: Array) -> Metrics:
    """``½ mean (u + n)²``, and of the compact autoencoder ``½ mean ((g(f(x̃, σ)) - x)/σ)²``; x [B, H, W, C] in [0, 1].

    σ is log-uniform, over the whole ladder of the U-Net, and over the semantic ladder of the autoencoder.
    """
    predictors = [("denoising_loss", noise_predictor(config, params), config.sigma_min)]
    if config.semantic_chain == "latent":
        predictors.append(("autoencoder_loss", _compact_predictor(config, params), config.semantic_sigma_min))
    losses = {}
    for i, (name, predictor, lowest) in enumerate(predictors):
        level_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        log_sigma = jax.random.uniform(level_key, x.shape[:1], minval=np.log(lowest), maxval=np.log(config.sigma_max))
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
    decay = jnp.minimum(config.average_decay, (1.0 + state.step) / (10.0 + state.step))
    moved = jnp.sqrt(jnp.mean(jnp.square(rows.negatives - rows.starts)))
    metrics |= {"energy_gap": metrics["energy_data"] - metrics["energy_negative"], "chain_displacement": moved}
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
        "semantic": len(coarse) * config.chain.num_steps,
        "texture": len(fine) * config.refinement.steps_per_level + (1 if len(fine) else 0),
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
                start if latent else 0.5 + config.sigma_max * start, coarse, config.chain,
                latent=latent, recovery=config.negatives == "recovery",
            )  # fmt: skip
            semantic = x = _decode(config, state.average, x) if latent else x
            if latent and len(fine):
                x = x + fine[0] * noise  # a chain on pixels has its noise already
        if len(fine):
            x, steps = chains.refine(refine_key, predictor, x, fine, config.refinement, positions_every=positions_every)
        return semantic, steps, jnp.clip(x, 0.0, 1.0)

    results = jax.vmap(one)(mcmc.chain_keys(key, n))
    return Synthesis(*jax.tree.map(lambda a: 2.0 * a - 1.0, results))


def part_energies(
    config: DenoisingEBMConfig, state: DenoisingEBMState, images: Array, sigma: float
) -> dict[str, Array]:
    """``{"semantic": F/τ, "texture": E_tex}`` of each image [n] as it is, taken to have noise σ; averaged weights."""
    latent = config.semantic_chain == "latent"
    predictor = noise_predictor(config, state.average)
    semantic = semantic_function(config, state.average)
    level = jnp.asarray(sigma, jnp.float32)
    tau = chains.temperature(config.chain, sigma, latent)

    def one(image: Array) -> dict[str, Array]:
        x = 0.5 * (image + 1.0)
        z = _encode(config, state.average, x, level) if latent else x
        return {"semantic": semantic(z, level) / tau, "texture": parts.texture(predictor, sigma)(x)}

    return jax.vmap(one)(images)


def energy(config: DenoisingEBMConfig, state: DenoisingEBMState, images: Array) -> Array:
    """``E_sem + λ_t E_tex`` of each image [n] at σ*, float32."""
    of = part_energies(config, state, images, config.score_sigma)
    return of["semantic"] + config.texture_weight * of["texture"]


def reconstruct(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Array:
    """``g(f(x, σ))`` at the lowest semantic level, averaged weights; ``key`` is not used."""
    del key
    x = 0.5 * (images + 1.0)
    sigma = jnp.full(x.shape[:1], config.semantic_sigma_min)
    return 2.0 * _decode(config, state.average, _encode(config, state.average, x, sigma)) - 1.0


def scores(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, images: Array) -> Metrics:
    """Held-out scores, averaged weights.

    The denoising losses; both energies at σ*; and ``semantic_contrast``, mean F of images with the noise of one level
    above minus mean F at their own, over the levels: above 0 where F tells which is noisier.
    """
    x = 0.5 * (images + 1.0)
    denoising_key, noise_key = jax.random.split(key)
    ladder, latent = semantic_levels(config), config.semantic_chain == "latent"
    semantic = jax.vmap(semantic_function(config, state.average), (0, None))
    noise, contrasts = jax.random.normal(noise_key, x.shape), []
    for sigma, above in zip(ladder[1:].tolist(), ladder[:-1].tolist(), strict=True):
        both = [x + s * noise for s in (above, sigma)]
        if latent:
            both = [_encode(config, state.average, a, jnp.full(len(a), sigma)) for a in both]
        values = [jnp.mean(semantic(a, jnp.asarray(sigma, jnp.float32))) for a in both]
        contrasts.append(values[0] - values[1])
    of = part_energies(config, state, images, config.score_sigma)
    return {
        **denoising_losses(config, state.average, denoising_key, x),
        "semantic_energy": jnp.mean(of["semantic"]),
        "texture_energy": jnp.mean(of["texture"]),
        "semantic_contrast": jnp.mean(jnp.asarray(contrasts)) if contrasts else jnp.zeros(()),
    }


def build(config: DenoisingEBMConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)
    return Method(
        init=functools.partial(initialize, config),
        update=functools.partial(update, config),
        generate=lambda key, state, n: synthesize(config, key, state, n).images,
        energy=functools.partial(energy, config),
        reconstruct=functools.partial(reconstruct, config) if config.semantic_chain == "latent" else None,
        scores=functools.partial(scores, config),
        parameters=lambda state: dict(state.params),
        evaluations_per_image=sum(evaluation_counts(config).values()),
    )
