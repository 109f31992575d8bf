"""A list of realistic faults of the library, to be seen by the tests that concern them (`python -m tests.mutants.run`).

A mutant is one change of one file. Whoever changes that line of the library changes its mutant too, and
``tests/package/test_mutants.py`` says where that was forgotten. Mutants that change no result are not listed.
"""

from .mutant import ROOT, Mutant, code, selections
from .of_bank_and_energy import MUTANTS as OF_BANK_AND_ENERGY
from .of_calibration import MUTANTS as OF_CALIBRATION
from .of_data import MUTANTS as OF_DATA
from .of_denoising import MUTANTS as OF_DENOISING
from .of_evaluation import MUTANTS as OF_EVALUATION
from .of_hat import MUTANTS as OF_HAT
from .of_learning import MUTANTS as OF_LEARNING
from .of_losses import MUTANTS as OF_LOSSES
from .of_matching import MUTANTS as OF_MATCHING
from .of_mcmc import MUTANTS as OF_MCMC
from .of_networks import MUTANTS as OF_NETWORKS
from .of_points import MUTANTS as OF_POINTS
from .of_problems import MUTANTS as OF_PROBLEMS
from .of_report import MUTANTS as OF_REPORT
from .of_restoration import MUTANTS as OF_RESTORATION
from .of_samplers import MUTANTS as OF_SAMPLERS
from .of_training import MUTANTS as OF_TRAINING

__all__ = ["MUTANTS", "ROOT", "Mutant", "code", "selections"]

MUTANTS: tuple[Mutant, ...] = (
    *OF_MCMC, *OF_BANK_AND_ENERGY, *OF_CALIBRATION, *OF_HAT, *OF_DENOISING, *OF_LEARNING, *OF_LOSSES, *OF_RESTORATION,
    *OF_EVALUATION, *OF_DATA, *OF_NETWORKS, *OF_TRAINING, *OF_SAMPLERS, *OF_PROBLEMS, *OF_POINTS, *OF_REPORT,
    *OF_MATCHING,
)  # fmt: skip
