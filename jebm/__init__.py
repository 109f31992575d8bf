"""jebm: energy-based generative image models in JAX.

An energy is a function of one example that returns a scalar, ``p(x) ∝ exp(-E(x))``; a sampler is a kernel that walks
one; a model family is a bundle of pure functions; a run is a trained model in a directory.

Energies and chains
    energy          energies and their combinators: sums, mixtures, conditioning, energies seen through a generator
    langevin, underdamped_langevin, preconditioned_langevin, mala, hmc, nuts, from_blackjax
                    kernels
    sample, sample_chains, chain_keys
                    one chain, or many
    parallel_tempering, annealed_langevin, smc
                    samplers over temperatures and along paths of energies
    mcmc            kernels, banks of chains, tuning of step sizes
    diagnostics, plot
                    mixing of chains; figures
    problems        energies and data sets with exact answers
    learning        learning rules for an energy of your own: losses for jax.grad and optax

Models
    methods         model families, ``methods.build(config)``
    networks, losses
                    layers and image losses that they share
    config          configurations of an experiment
    fit             trains a configuration on arrays or on a data source, and returns the run
    refine          puts an energy on a generator of your own
    load            a trained model, from a run directory, a file of ``jebm export``, or by name (``"digits/ec_vae"``):
                    ``run.energy``, ``run.generate(key, n)``, ``run.generator``, ``run.kernel()``
    evaluate        scores of a run, written beside it
    data, images    image sets and their preprocessing; grids and PNG
    restoration     inverse problems with a model as the prior
    evaluation, metrics, report
                    measurements, numbers from arrays, the page of a run

Running
    runs, training  run directories; the loop, with exact resumption and recovery
    sharding        meshes of devices
    convert         weights of other programs
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jebm import config as config
    from jebm import convert as convert
    from jebm import data as data
    from jebm import diagnostics as diagnostics
    from jebm import energy as energy
    from jebm import evaluation as evaluation
    from jebm import images as images
    from jebm import learning as learning
    from jebm import losses as losses
    from jebm import mcmc as mcmc
    from jebm import methods as methods
    from jebm import metrics as metrics
    from jebm import networks as networks
    from jebm import plot as plot
    from jebm import problems as problems
    from jebm import report as report
    from jebm import restoration as restoration
    from jebm import runs as runs
    from jebm import sharding as sharding
    from jebm import training as training
    from jebm.evaluation.run import evaluate_run as evaluate  # noqa: F401
    from jebm.mcmc.chains import chain_keys as chain_keys
    from jebm.mcmc.chains import sample as sample
    from jebm.mcmc.chains import sample_chains as sample_chains
    from jebm.mcmc.langevin import langevin as langevin
    from jebm.mcmc.metropolis import from_blackjax as from_blackjax
    from jebm.mcmc.metropolis import hmc as hmc
    from jebm.mcmc.metropolis import mala as mala
    from jebm.mcmc.metropolis import nuts as nuts
    from jebm.mcmc.paths import annealed_langevin as annealed_langevin
    from jebm.mcmc.paths import smc as smc
    from jebm.mcmc.preconditioned import preconditioned_langevin as preconditioned_langevin
    from jebm.mcmc.tempering import parallel_tempering as parallel_tempering
    from jebm.mcmc.underdamped import underdamped_langevin as underdamped_langevin
    from jebm.notebook import fit as fit
    from jebm.notebook import refine as refine
    from jebm.runs.run import load as load

__version__ = "0.1.0"

# loaded when first used: parts bring JAX, optimisers, checkpoints and image libraries along, and the command line is to
# answer, and to hear Ctrl-C, before they are there
_PARTS = (
    "config", "convert", "data", "diagnostics", "energy", "evaluation", "images", "learning", "losses", "mcmc",
    "methods", "metrics", "networks", "plot", "problems", "report", "restoration", "runs", "sharding", "training",
)  # fmt: skip
_FUNCTIONS = {
    "annealed_langevin": "mcmc", "chain_keys": "mcmc", "evaluate": "evaluation.run.evaluate_run", "fit": "notebook",
    "from_blackjax": "mcmc", "hmc": "mcmc", "langevin": "mcmc", "load": "runs", "mala": "mcmc", "nuts": "mcmc",
    "parallel_tempering": "mcmc", "preconditioned_langevin": "mcmc", "refine": "notebook", "sample": "mcmc",
    "sample_chains": "mcmc", "smc": "mcmc", "underdamped_langevin": "mcmc",
}  # fmt: skip
__all__ = ["__version__", *_PARTS, *_FUNCTIONS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        module, _, attribute = _FUNCTIONS[name].rpartition(".")
        module, attribute = (module, attribute) if module else (attribute, name)
        return getattr(importlib.import_module(f"jebm.{module}"), attribute)
    if name in _PARTS:
        return importlib.import_module(f"jebm.{name}")
    raise AttributeError(f"module 'jebm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
