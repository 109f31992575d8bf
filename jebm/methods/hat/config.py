"""The configuration of a Hat EBM."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Score, Summary
from jebm.methods.hat import keras
from jebm.methods.hat.chains import ChainConfig
from jebm.methods.hat.networks import IMAGE_SIZES, code_shape

__all__ = ["HatEBMConfig"]

GIVEN = "given"
"""Of ``generator``: a Python function, given at each call."""

Rates = tuple[tuple[float, int], ...]


@dataclasses.dataclass(frozen=True)
class HatEBMConfig:
    """A Hat EBM; defaults are the released ones of CIFAR-10 synthesis (8,481,539 parameters).

    Attributes:
        application: see `jebm.methods.hat.ebm`.
        image_size: 8, 16, 32, 64 or 128 (8 and 16 are ours).
        channels: of the images.
        latent_size: of z; a retrofit's codes are image_size/2 x image_size/2 instead.
        energy_width: of the hat, see `jebm.methods.hat.networks`.
        generator_width: of the generator or decoder.
        output_scale: the network's images are ``output_scale * tanh``: 2, or 1 for an SN-GAN.
        generator: the frozen generator of a refinement or retrofit: a run directory, ``"network"`` for this
            configuration's own network with imported weights (`jebm convert`), or ``"given"`` for a Python function
            (`jebm.refine`). Empty in synthesis.
        temperature: T, in training and in sampling: a hat trained at one T is no model at another.
        chain: of training.
        test_chain: of generation.
        energy_learning_rate: rows (learning rate, first update), of the hat's Adam.
        generator_learning_rate: likewise of the generator.
        energy_gradient_clip: bound on the norm of each tensor of the hat's gradient, with its factor 1/T; or None.
        energy_regularization: α of `contrastive_loss` [ours, a stabiliser; the released code has none].
        data_noise: standard deviation of the noise on data.
        generator_loss_scale: factor of the generator's mean squared error.
        bank_size: rows, rounded down to a multiple of the batch.
        ema_decay: of the moving averages of hat and generator, which ``--weights ema`` selects.
        dtype: in which the networks compute; parameters, chains, noise and energies stay float32.
        rematerialize: gradients of the energy recompute each residual block instead of storing its activations: less
            memory, more time; results the same up to rounding.
    """

    application: Literal["synthesis", "refinement", "retrofit"] = "synthesis"
    image_size: int = 32
    channels: int = 3
    latent_size: int = 128
    energy_width: int = 256
    generator_width: int = 256
    output_scale: float = 2.0
    generator: str = ""
    temperature: float = 1e-8
    chain: ChainConfig = ChainConfig()
    test_chain: ChainConfig = ChainConfig(num_steps=125, max_drift=None, residual_start_scale=0.01)
    energy_learning_rate: Rates = ((1e-4, 0),)
    generator_learning_rate: Rates = ((1e-4, 0),)
    energy_gradient_clip: float | None = None
    energy_regularization: float = 0.0
    data_noise: float = 1e-3
    generator_loss_scale: float = 1000.0
    bank_size: int = 10_000
    ema_decay: float = 0.9999
    dtype: Literal["float32", "bfloat16"] = "float32"
    rematerialize: bool = False

    SUMMARY: ClassVar[Summary] = Summary(
        name="Hat EBM",
        paper="arXiv 2210.16486",
        progress=("energy_gap", "residual_norm", "energy_gradient_norm"),
        curves={
            "residual_norm": "Mean length of the residual y that a chain adds to a generated image.",
            "generator_loss": "Squared error of the generator at the ends of its own chains.",
            "energy_gradient_norm": "Norm of the gradient that trains the energy.",
            **diagnostics.CURVES,
        },
        scores={
            "energy_gap": Score(
                "Mean energy H of the chains' ends minus that of data: 0 where it tells no difference."
            ),
            "energy_gap_generator": Score("Likewise of the chains' starts, the generator's own images."),
        },
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "learning_rate": ("energy_learning_rate", "generator_learning_rate"),
        "step_size": ("chain.noise_scale", "chain.latent_noise_scale"),  # η = ε²/(2T): the factor squared on η
        "energy_regularization": ("energy_regularization",),
    }

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", latent_size=">=1", energy_width=">=1", generator_width=">=1", output_scale=">0",
            temperature=">0", energy_gradient_clip=">0", data_noise=">=0", generator_loss_scale=">0", bank_size=">=1",
            energy_regularization=">=0", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be one of {IMAGE_SIZES}")
        keras.check_steps("energy_learning_rate", self.energy_learning_rate)
        keras.check_steps("generator_learning_rate", self.generator_learning_rate)
        joint = self.application != "synthesis"
        for name, chain in (("chain", self.chain), ("test_chain", self.test_chain)):
            if (chain.latent_noise_scale > 0) != joint:
                rule = "must be above 0: its chains move z" if joint else "must be 0: z stays"
                raise ConfigError(
                    f"{name}.latent_noise_scale={chain.latent_noise_scale}: in {self.application} it {rule}"
                )
        if joint and not self.generator:
            raise ConfigError(
                f"generator='': {self.application} needs one: the directory of a run (an autoencoder, a VAE, a "
                "generator), or 'network' for weights that 'jebm convert' brings"
            )
        if self.generator and not joint:
            raise ConfigError(f"generator={self.generator!r}: synthesis trains its own generator; leave it empty")

    @property
    def generator_run(self) -> str | None:
        """The run directory of the frozen generator; None if ``generator`` names none."""
        return None if self.generator in ("", "network", GIVEN) else self.generator

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one z."""
        return code_shape(self.image_size) if self.application == "retrofit" else (self.latent_size,)
