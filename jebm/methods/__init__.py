"""Model families: each is one file, and builds a `Method` from its configuration."""

from typing import Any, NamedTuple

from jebm.methods import ec_vae as _ec_vae
from jebm.methods import hat_autoencoder as _hat_autoencoder
from jebm.methods import hat_ebm as _hat_ebm
from jebm.methods.base import Method as Method
from jebm.methods.ec_vae import ECVAEConfig as ECVAEConfig
from jebm.methods.hat_autoencoder import HatAutoencoderConfig as HatAutoencoderConfig
from jebm.methods.hat_chains import ChainConfig as ChainConfig
from jebm.methods.hat_ebm import HatEBMConfig as HatEBMConfig

ec_vae = _ec_vae.build
hat_autoencoder = _hat_autoencoder.build
hat_ebm = _hat_ebm.build


class Family(NamedTuple):
    """A registered family: its configuration class, and the function from a configuration to a `Method`."""

    config_class: type
    build: Any


FAMILIES: dict[str, Family] = {
    "ec_vae": Family(ECVAEConfig, ec_vae),
    "hat_autoencoder": Family(HatAutoencoderConfig, hat_autoencoder),
    "hat_ebm": Family(HatEBMConfig, hat_ebm),
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
