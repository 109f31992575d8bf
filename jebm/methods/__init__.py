"""Model families: each is one file, and builds a `Method` from its configuration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jebm.methods.base import Method as Method
from jebm.methods.base import requiring_images as _requiring_images
from jebm.methods.denoising import ebm as _denoising_ebm
from jebm.methods.denoising.ebm import DenoisingEBMConfig as DenoisingEBMConfig
from jebm.methods.ec import flow as _ec_flow
from jebm.methods.ec import gan as _ec_gan
from jebm.methods.ec import vae as _ec_vae
from jebm.methods.ec.flow import ECFlowConfig as ECFlowConfig
from jebm.methods.ec.gan import ECGANConfig as ECGANConfig
from jebm.methods.ec.vae import ECVAEConfig as ECVAEConfig
from jebm.methods.hat import autoencoder as _hat_autoencoder
from jebm.methods.hat import ebm as _hat_ebm
from jebm.methods.hat.autoencoder import HatAutoencoderConfig as HatAutoencoderConfig
from jebm.methods.hat.chains import ChainConfig as ChainConfig
from jebm.methods.hat.ebm import HatEBMConfig as HatEBMConfig


def _of_own_images(build: Callable[..., Method]) -> Callable[..., Method]:
    @functools.wraps(build)
    def checked(config: Any, *arguments: Any, **options: Any) -> Method:
        method_config = getattr(config, "method", config)
        method = build(config, *arguments, **options)
        return _requiring_images(method, method_config.image_size, method_config.channels)

    return checked


denoising_ebm = _of_own_images(_denoising_ebm.build)
ec_flow = _of_own_images(_ec_flow.build)
ec_gan = _of_own_images(_ec_gan.build)
ec_vae = _of_own_images(_ec_vae.build)
hat_autoencoder = _of_own_images(_hat_autoencoder.build)
hat_ebm = _of_own_images(_hat_ebm.build)


class Family(NamedTuple):
    """A registered family.

    Attributes:
        config_class: its configuration class.
        build: from a configuration to a `Method`.
        generator: ``(config, state) -> generator`` of one latent of law N(0, I), or None where that configuration has
            none: for a hat over it, and for restoration.
        averages: which fields of its state hold moving averages, each with the field of the weights it averages, where
            the family generates with the averages; empty where its configuration has a field ``weights`` to choose.
    """

    config_class: type
    build: Any
    generator: Any = lambda config, state: None  # noqa: E731
    averages: tuple[tuple[str, str], ...] = ()


FAMILIES: dict[str, Family] = {
    "denoising_ebm": Family(DenoisingEBMConfig, denoising_ebm, _denoising_ebm.generator_of, (("average", "params"),)),
    "ec_flow": Family(ECFlowConfig, ec_flow, _ec_flow.generator_of, (("average", "flow"),)),
    "ec_gan": Family(ECGANConfig, ec_gan, _ec_gan.generator_of, (("average", "generator"),)),
    "ec_vae": Family(ECVAEConfig, ec_vae, _ec_vae.standing_decoder, (("vae_average", "vae"),)),
    "hat_autoencoder": Family(HatAutoencoderConfig, hat_autoencoder, _hat_autoencoder.decoder),
    "hat_ebm": Family(HatEBMConfig, hat_ebm, _hat_ebm.generator_of),
}


def family_of(config: Any) -> str:
    """The family whose configuration this is."""
    for name, family in FAMILIES.items():
        if type(config) is family.config_class:
            return name
    raise ValueError(f"{type(config).__name__} is no configuration of a method; there are {sorted(FAMILIES)}")


def build(config: Any) -> Method:
    """The method of a `jebm.config.Config`, or of a method's own configuration."""
    config = getattr(config, "method", config)
    return FAMILIES[family_of(config)].build(config)
