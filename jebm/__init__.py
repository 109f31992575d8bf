"""jebm: energy-based generative image models in JAX."""

from typing import TYPE_CHECKING, Any

from jebm import energy as energy
from jebm import mcmc as mcmc
from jebm import sharding as sharding
from jebm.mcmc import chain_keys as chain_keys
from jebm.mcmc import hmc as hmc
from jebm.mcmc import langevin as langevin
from jebm.mcmc import mala as mala
from jebm.mcmc import nuts as nuts
from jebm.mcmc import sample as sample
from jebm.mcmc import sample_chains as sample_chains

if TYPE_CHECKING:
    from jebm import methods as methods
    from jebm.runs import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # loaded when first used: they bring optimisers, checkpoints and image libraries along
    import importlib

    if name == "load":
        return importlib.import_module("jebm.runs").load
    if name in (
        "config",
        "data",
        "evaluation",
        "interop",
        "losses",
        "methods",
        "networks",
        "restoration",
        "runs",
        "training",
    ):
        return importlib.import_module(f"jebm.{name}")
    raise AttributeError(f"module 'jebm' has no attribute {name!r}")
