"""Configuration of the energy-calibrated VAE."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from jebm import losses
from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Score, Summary
from jebm.methods.ec.calibration import GAP, SCORES, CalibrationConfig
from jebm.methods.ec.posterior import PosteriorCalibrationConfig

__all__ = ["ECVAEConfig"]


@dataclasses.dataclass(frozen=True)
class ECVAEConfig:
    """An energy-calibrated VAE; defaults are the released code's, at 32×32×3 (101,251,969 parameters).

    Attributes:
        image_size: 8, 16, 32 or 64 (the released 32 px ladder, extended [ours]), or 256 (the released FastGAN-style
            pair, never wired into a VAE there).
        channels: of the images.
        latent_size: of z.
        encoder_width: channels of the first stage of the encoder; at 256 px its base width, 64 in the released code.
        decoder_width: the base that the ladder's multipliers multiply.
        energy_layers: (channels, blocks) of each resolution of the energy network.
        energy_head_width: hidden units of its head.
        energy_scales: 3: three trunks on x, x/2 and x/4 (the released demo); 1: one trunk.
        spectral_norm: spectral normalisation of the energy network.
        power_iterations: ``"per_update"``: one power iteration an iteration, outside the chain [ours];
            ``"per_evaluation"``: one at each energy evaluation, also inside the chain (the released code).
        kl_weight: β.
        reconstruction: reconstruction loss, a name of `jebm.losses`.
        vae_learning_rate: Adam's, for encoder and decoder.
        energy_learning_rate: Adam's, for the energy.
        energy_regularization: α of `contrastive_loss` [ours, a stabiliser; the released code has none].
        b1: Adam's first moment decay, both.
        b2: Adam's second moment decay, both.
        ema_decay: of the exponential moving average of encoder and decoder that generates [ours; the released
            code has the class and does not use it]; at step t at most (1 + t)/(10 + t).
        calibration: the chain and the constraint.
        reuse_negatives: take the calibrated samples as the energy's negatives: one chain an iteration instead of two
            [ours].
        calibrated_posterior: calibrate the encoder's samples too [inferred]; needs the squared error and β > 0, that is
            Gaussian errors of the decoder with σ² = β/2.
        posterior: that chain and constraint.
        dtype: compute dtype of the networks; parameters, chains, noise and energies stay float32.
        rematerialize: recompute each residual block in the energy's gradients instead of storing its activations: less
            memory, more time; the same results up to rounding.
    """

    SUMMARY: ClassVar[Summary] = Summary(
        name="Energy-calibrated VAE",
        paper="arXiv 2311.04071",
        progress=("reconstruction", "kl", "energy_gap"),
        curves={
            "reconstruction": "Loss between images and their reconstructions.",
            "kl": "Divergence of the encoder's Gaussians from the prior, in nats an image.",
            "calibration": "Squared distance that the energy's chains move generated images: what calibration lowers.",
            **diagnostics.CURVES,
        },
        scores={
            **SCORES,
            "energy_gap": GAP,
            "kl": Score("Divergence of the encoder's Gaussians from the prior, in nats an image."),
            "elbo": Score("Evidence lower bound on the log-likelihood, in nats an image.", "higher"),
        },
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "learning_rate": ("vae_learning_rate", "energy_learning_rate"),
        "step_size": ("calibration.step_size", "posterior.step_size"),
        "energy_regularization": ("energy_regularization",),
    }

    image_size: int = 32
    channels: int = 3
    latent_size: int = 128
    encoder_width: int = 128
    decoder_width: int = 64
    energy_layers: tuple[tuple[int, int], ...] = ((128, 2), (256, 2), (256, 2), (256, 2))
    energy_head_width: int = 2048
    energy_scales: Literal[1, 3] = 3
    spectral_norm: bool = True
    power_iterations: Literal["per_update", "per_evaluation"] = "per_update"
    kl_weight: float = 0.1
    reconstruction: str = "squared_error"
    vae_learning_rate: float = 2e-4
    energy_learning_rate: float = 1e-4
    energy_regularization: float = 0.0
    b1: float = 0.0
    b2: float = 0.9
    ema_decay: float = 0.999
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
    reuse_negatives: bool = False
    calibrated_posterior: bool = False
    posterior: PosteriorCalibrationConfig = dataclasses.field(default_factory=PosteriorCalibrationConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", latent_size=">=1", encoder_width=">=1", decoder_width=">=1", energy_head_width=">=1",
            kl_weight=">=0", vae_learning_rate=">0", energy_learning_rate=">0", energy_regularization=">=0",
            b1="in [0, 1)", b2="in [0, 1)", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in (8, 16, 32, 64, 256):
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be 8, 16, 32, 64 or 256")
        if self.image_size == 256:  # halved by the FastGAN-style pair
            for name, divisor in (("encoder_width", 4), ("decoder_width", 2), ("latent_size", 2)):
                if getattr(self, name) % divisor:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} is out of range: at 256 px it must be a multiple of {divisor}"
                    )
        if not self.energy_layers or any(number < 1 for layer in self.energy_layers for number in layer):
            raise ConfigError(
                f"energy_layers={self.energy_layers} is out of range: it must be one pair (channels, blocks) or more, "
                "all numbers >=1"
            )
        smallest = self.image_size >> (len(self.energy_layers) - 1 + (2 if self.energy_scales == 3 else 0))
        if smallest < 1:
            raise ConfigError(
                f"energy_layers={self.energy_layers} halves the smallest of {self.energy_scales} scales of "
                f"{self.image_size} px images below 1 px: use fewer layers, or energy_scales=1"
            )
        losses.get(self.reconstruction)
        if self.calibrated_posterior and not self.gaussian:
            raise ConfigError(
                f"calibrated_posterior=True does not fit kl_weight={self.kl_weight}, reconstruction="
                f"{self.reconstruction!r}: it needs kl_weight>0 and the squared error, a Gaussian likelihood"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def gaussian(self) -> bool:
        """Whether the loss is 2σ² times a negative ELBO with Gaussian errors."""
        return self.kl_weight > 0 and self.reconstruction == "squared_error"
