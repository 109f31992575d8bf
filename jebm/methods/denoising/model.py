"""The model of Denoising-EBM (arXiv 2303.03887): its configuration, its networks, and the functions they make.

`jebm.methods.denoising.ebm` separates what the paper states from what is ours.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm.energy import bind
from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Score, Summary
from jebm.methods.denoising import energies as parts
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from jebm.methods.denoising.energies import NoisePredictor
from jebm.methods.denoising.networks import (
    CompactDecoder,
    CompactEncoder,
    DenoisingUNet,
    LatentHead,
    PooledHead,
    QuadraticHead,
)

__all__ = [
    "DenoisingEBMConfig", "Networks", "compact_predictor", "decode", "encode", "image_decoder", "initial_parameters",
    "networks", "noise_predictor", "semantic_function", "semantic_levels", "wide",
]  # fmt: skip

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DenoisingEBMConfig:
    """A Denoising-EBM; defaults are for 32x32x3. Noise levels are in units of images in [0, 1].

    Attributes:
        image_size: of the images, a power of 2 that the multipliers can halve to 4 px or more.
        channels: of the images.
        semantic_energy: an entry of `denoising_energies.SEMANTIC_ENERGIES`.
        semantic_chain: where the semantic chains run, see `denoising_ebm`.
        width: channels of the U-Net at full resolution, a multiple of 4.
        multipliers: of the width, per resolution; of both autoencoders.
        num_blocks: residual blocks per resolution of the U-Net (of the compact autoencoder: 1).
        latent_size: of z.
        latent_width: channels of the compact autoencoder at full resolution, a multiple of 4.
        head_outputs: m, numbers in the vector output.
        head_width: hidden units of the head.
        sigma_max: σ_1, of the texture ladder. Texture-only sampling starts from it, so it should be about the largest
            distance of two images (NCSNv2's first technique: 50 for CIFAR-10); two-stage sampling needs σ_J alone.
        semantic_sigma_max: σ_1 of the semantic ladder and of the compact autoencoder, or None for ``sigma_max``.
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
        ema_decay: of the moving average of all weights that generates and scores; at step t at most
            (1 + t)/(10 + t).
        dtype: in which the networks compute; parameters, chains, noise and energies stay float32.
        rematerialize: gradients of the energy compute each residual block again instead of keeping its inside: less
            memory, more time; results the same up to rounding.
    """

    image_size: int = 32
    channels: int = 3
    semantic_energy: str = "vec_norm"
    semantic_chain: Literal["latent", "pixel"] = "latent"
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    latent_size: int = 32
    latent_width: int = 128
    head_outputs: int = 128
    head_width: int = 2048
    sigma_max: float = 1.0
    semantic_sigma_max: float | None = None
    sigma_min: float = 0.01
    semantic_sigma_min: float = 0.08
    semantic_levels: int = 6
    chain: SemanticChainConfig = SemanticChainConfig(sampling_steps=5)
    negatives: Literal["noisier", "bank", "recovery"] = "noisier"
    bank_size: int = 10_000
    rejuvenation: float = 0.05
    denoising_weight: float = 1.0
    energy_regularization: float = 0.1
    texture_weight: float = 1.0
    score_sigma: float = 0.2
    refinement: RefinementConfig = RefinementConfig()
    sampling: Literal["two_stage", "texture_only", "semantic_only"] = "two_stage"
    learning_rate: float = 1e-4
    b1: float = 0.9
    warmup_steps: int = 1000
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    dtype: Literal["float32", "bfloat16"] = "float32"
    rematerialize: bool = False

    SUMMARY: ClassVar[Summary] = Summary(
        name="Denoising-EBM",
        paper="arXiv 2303.03887, our reconstruction",
        progress=("denoising_loss", "energy_gap", "chain_displacement"),
        curves={
            "denoising_loss": "Squared error of the predicted noise.",
            "autoencoder_loss": "Likewise of the prediction through the latent.",
            **diagnostics.CURVES,
        },
        scores={
            "denoising_loss": Score("Squared error of the predicted noise on test images.", "lower"),
            "autoencoder_loss": Score("Likewise of the prediction through the latent.", "lower"),
            "semantic_energy": Score("Mean semantic energy of test images."),
            "texture_energy": Score("Mean texture energy of test images."),
            "semantic_contrast": Score("Rise of the semantic energy from one noise level to the next.", "higher"),
        },
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "learning_rate": ("learning_rate",),
        "step_size": ("chain.latent_step_size",),
        "energy_regularization": ("energy_regularization",),
    }

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", width=">=1", num_blocks=">=1", latent_size=">=2", latent_width=">=1",
            head_outputs=">=1", head_width=">=1", sigma_max=">0", semantic_sigma_max=">0", sigma_min=">0",
            semantic_sigma_min=">0", semantic_levels=">=1", bank_size=">=1", rejuvenation="in [0, 1)",
            denoising_weight=">0",
            energy_regularization=">=0", texture_weight=">=0", score_sigma=">0", learning_rate=">0", b1="in [0, 1)",
            warmup_steps=">=0", gradient_clip=">0", ema_decay="in [0, 1)",
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
        ladder = semantic_levels(self)
        if ladder[0] > self.sigma_max:
            raise ConfigError(
                f"semantic_sigma_max={self.semantic_sigma_max} is above sigma_max={self.sigma_max}: the U-Net knows no "
                "such noise; lower it, or raise sigma_max"
            )
        parts.noise_ladder(self.sigma_max, self.sigma_min, 2)
        self.refinement.ladder(self.refinement.sigma_start, self.sigma_min, self.dimension)
        if self.refinement.sigma_start > ladder[0]:
            raise ConfigError(
                f"refinement.sigma_start={self.refinement.sigma_start} is above the highest semantic level, "
                f"{self.highest_semantic}: no semantic level is left before it"
            )

        if not self.sigma_min <= self.score_sigma <= self.sigma_max:
            raise ConfigError(
                f"score_sigma={self.score_sigma} is out of range: it must lie in [sigma_min, sigma_max], "
                f"[{self.sigma_min}, {self.sigma_max}]"
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
    def highest_semantic(self) -> float:
        """σ_1 of the semantic ladder."""
        return self.sigma_max if self.semantic_sigma_max is None else self.semantic_sigma_max

    @property
    def dimension(self) -> int:
        """Numbers in an image."""
        return self.image_size**2 * self.channels

    @property
    def score_temperature(self) -> float:
        """τ(σ*), see `jebm.methods.denoising.chains.temperature`."""
        chain = self.chain
        return (
            chain.latent_temperature if self.semantic_chain == "latent" else (chain.noise_scale * self.score_sigma) ** 2
        )

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
        encoder = CompactEncoder(
            c.latent_size, c.latent_width, c.multipliers, dtype=dtype, rematerialize=c.rematerialize
        )
        decoder = CompactDecoder(c.channels, c.latent_width, c.multipliers, start_size=start_size, dtype=dtype)
    unet = DenoisingUNet(c.width, c.multipliers, c.num_blocks, dtype, c.rematerialize)
    return Networks(unet, head, encoder, decoder)


def initial_parameters(config: DenoisingEBMConfig, key: Array) -> dict[str, Tree]:
    """Fresh parameters of each network, by its name in `Networks`."""
    nets = networks(config)
    keys = iter(jax.random.split(key, 4))
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
    return params


def semantic_levels(config: DenoisingEBMConfig) -> np.ndarray:
    """The levels of the likelihood, falling."""
    return parts.noise_ladder(config.highest_semantic, config.semantic_sigma_min, config.semantic_levels)


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


def encode(config: DenoisingEBMConfig, params: Tree, x: Array, sigma: Array) -> Array:
    """``f(x̃, σ)`` of a batch of images in [0, 1], or of one."""
    encoder = networks(config).encoder
    assert encoder is not None
    return cast(Array, encoder.apply({"params": params["encoder"]}, x, sigma))


def decode(config: DenoisingEBMConfig, params: Tree, z: Array) -> Array:
    """``g(z)``, images in (0, 1)."""
    decoder = networks(config).decoder
    assert decoder is not None
    return cast(Array, decoder.apply({"params": params["decoder"]}, z))


def image_decoder(config: DenoisingEBMConfig, params: Tree) -> Partial:
    """``z -> 2 g(z) - 1``, an image in (-1, 1)."""
    return bind(_decoded, _Static(config), params)


def _decoded(static: _Static, params: Tree, z: Array) -> Array:
    return 2.0 * decode(static.config, params, z) - 1.0


def compact_predictor(config: DenoisingEBMConfig, params: Tree) -> NoisePredictor:
    """``(g(f(x̃, σ)) - x̃)/σ``: the compact autoencoder as a denoiser."""
    return lambda x, sigma: (decode(config, params, encode(config, params, x, sigma)) - x) / wide(sigma)


def wide(a: Array) -> Array:
    """[B] -> [B, 1, 1, 1]."""
    return a[:, None, None, None]
