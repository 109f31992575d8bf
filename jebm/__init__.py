"""jebm: energy-based generative image models in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jebm import energy as energy
    from jebm import mcmc as mcmc
    from jebm import methods as methods
    from jebm import sharding as sharding
    from jebm.mcmc import chain_keys as chain_keys
    from jebm.mcmc import hmc as hmc
    from jebm.mcmc import langevin as langevin  # type: ignore[no-redef]  # a module of that name there, too
    from jebm.mcmc import mala as mala
    from jebm.mcmc import nuts as nuts
    from jebm.mcmc import sample as sample
    from jebm.mcmc import sample_chains as sample_chains
    from jebm.runs.run import load as load

__version__ = "0.1.0"

# loaded when first used: parts bring JAX, optimisers, checkpoints and image libraries along, and the command line is to
# answer, and to hear Ctrl-C, before they are there
_PARTS = (
    "config", "data", "energy", "evaluation", "interop", "losses", "mcmc", "methods", "networks", "restoration", "runs",
    "sharding", "training",
)  # fmt: skip
_FUNCTIONS = {
    "load": "runs", "chain_keys": "mcmc", "hmc": "mcmc", "langevin": "mcmc", "mala": "mcmc", "nuts": "mcmc",
    "sample": "mcmc", "sample_chains": "mcmc",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"jebm.{_FUNCTIONS[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"jebm.{name}")
    raise AttributeError(f"module 'jebm' has no attribute {name!r}")
