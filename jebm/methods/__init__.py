"""Model families: each is one folder and one row of `FAMILIES`, and builds a `Method` from its configuration."""

from collections.abc import Callable
from typing import Any

from jebm.energy import Generator
from jebm.methods.base import Chain as Chain
from jebm.methods.base import Method as Method
from jebm.methods.denoising.ebm import DenoisingEBMConfig as DenoisingEBMConfig
from jebm.methods.denoising.ebm import build as _denoising_ebm
from jebm.methods.ebm.model import EBMConfig as EBMConfig
from jebm.methods.ebm.model import build as _ebm
from jebm.methods.ec.flow import ECFlowConfig as ECFlowConfig
from jebm.methods.ec.flow import build as _ec_flow
from jebm.methods.ec.gan import ECGANConfig as ECGANConfig
from jebm.methods.ec.gan import build as _ec_gan
from jebm.methods.ec.vae import ECVAEConfig as ECVAEConfig
from jebm.methods.ec.vae import build as _ec_vae
from jebm.methods.hat.autoencoder import HatAutoencoderConfig as HatAutoencoderConfig
from jebm.methods.hat.autoencoder import build as _hat_autoencoder
from jebm.methods.hat.chains import ChainConfig as ChainConfig
from jebm.methods.hat.config import HatEBMConfig as HatEBMConfig
from jebm.methods.hat.ebm import build as _hat_ebm
from jebm.methods.matching.model import EnergyMatchingConfig as EnergyMatchingConfig
from jebm.methods.matching.model import build as _energy_matching
from jebm.methods.shared import Trained as Trained
from jebm.methods.shared import requiring_images
from jebm.methods.shared import with_weights as with_weights

FAMILIES: dict[str, tuple[type, Callable[..., Method]]] = {
    "denoising_ebm": (DenoisingEBMConfig, _denoising_ebm),
    "ebm": (EBMConfig, _ebm),
    "ec_flow": (ECFlowConfig, _ec_flow),
    "ec_gan": (ECGANConfig, _ec_gan),
    "ec_vae": (ECVAEConfig, _ec_vae),
    "energy_matching": (EnergyMatchingConfig, _energy_matching),
    "hat_autoencoder": (HatAutoencoderConfig, _hat_autoencoder),
    "hat_ebm": (HatEBMConfig, _hat_ebm),
}
"""The configuration class of each family, and ``build``: from a configuration to a `Method`."""


def family_of(config: Any) -> str:
    """The family whose configuration this is."""
    for name, (config_class, _) in FAMILIES.items():
        if type(config) is config_class:
            return name
    raise ValueError(f"{type(config).__name__} is no configuration of a method; there are {sorted(FAMILIES)}")


def build(config: Any, generator: Generator | None = None) -> Method:
    """The method of a `jebm.config.Config`, or of a method's own configuration.

    Args:
        config: the configuration.
        generator: for a Hat EBM over a frozen generator: any pure function from one latent to one image.

    Raises:
        ValueError: no configuration of a family, or a generator for a family that takes none.
    """
    config = getattr(config, "method", config)
    _, family = FAMILIES[family_of(config)]
    if generator is None:
        return requiring_images(family(config))
    if not isinstance(config, HatEBMConfig):
        raise ValueError(f"{type(config).__name__} takes no generator")
    return requiring_images(family(config, generator))


def given_generator(config: Any) -> str | None:
    """The run directory whose generator the method of a configuration is built over; None where it has its own."""
    config = getattr(config, "method", config)
    return config.generator_run if isinstance(config, HatEBMConfig) else None


def denoising_ebm(config: DenoisingEBMConfig) -> Method:
    """Denoising-EBM (arXiv 2303.03887): semantic energy on latents, texture energy on images."""
    return build(config)


def ebm(config: EBMConfig) -> Method:
    """One energy network, learnt by any rule of `jebm.learning`."""
    return build(config)


def ec_flow(config: ECFlowConfig) -> Method:
    """The energy-calibrated normalising flow (arXiv 2311.04071)."""
    return build(config)


def ec_gan(config: ECGANConfig) -> Method:
    """A small GAN under energy calibration."""
    return build(config)


def ec_vae(config: ECVAEConfig) -> Method:
    """The energy-calibrated VAE (arXiv 2311.04071)."""
    return build(config)


def energy_matching(config: EnergyMatchingConfig) -> Method:
    """Energy matching (arXiv 2504.10612): one potential, by flow matching and then by contrast."""
    return build(config)


def hat_autoencoder(config: HatAutoencoderConfig) -> Method:
    """The deterministic autoencoder whose decoder a retrofit takes (arXiv 2210.16486)."""
    return build(config)


def hat_ebm(config: HatEBMConfig, generator: Generator | None = None) -> Method:
    """Hat EBM (arXiv 2210.16486); refinement and retrofit over a given ``generator`` of one latent."""
    return build(config, generator)
