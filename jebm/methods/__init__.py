"""Model families: each is one file, and builds a `Method` from its configuration."""

from typing import Any, NamedTuple

from jebm.methods import ec_vae as _ec_vae
from jebm.methods.base import Method as Method
from jebm.methods.ec_vae import ECVAEConfig as ECVAEConfig

ec_vae = _ec_vae.build


class Family(NamedTuple):
    """A registered family: its configuration class, and the function from a configuration to a `Method`."""

    config_class: type
    build: Any


FAMILIES: dict[str, Family] = {"ec_vae": Family(ECVAEConfig, ec_vae)}


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
