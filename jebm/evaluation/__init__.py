"""Measurements of a model, and records that say how each was taken."""

from jebm.evaluation.annealed_importance import bracket, forward_weights, reverse_weights, tune_steps
from jebm.evaluation.features import Features, classifier_features, random_features, source_features
from jebm.evaluation.fidelity import psnr, ssim
from jebm.evaluation.frechet import Statistics, extrapolated, frechet_distance, merge, statistics
from jebm.evaluation.generation import evaluate_generation, generate_images
from jebm.evaluation.inception import inception_features
from jebm.evaluation.long_run import evaluate_long_run, long_chains
from jebm.evaluation.measure import (
    DEFAULT_METRICS,
    METRICS,
    evaluate,
    evaluate_likelihood,
    evaluate_ood,
    evaluate_reconstruction,
    evaluate_scores,
)
from jebm.evaluation.ood import aupr, auroc, auroc_interval, bootstrap_interval, fpr95
from jebm.evaluation.outliers import one_resolution, outliers
from jebm.evaluation.records import Record, read_all, read_record, run_protocol, write_record
from jebm.evaluation.reference import FeatureSet, feature_set
from jebm.evaluation.samples import classifier_score, kernel_distance, precision_recall
from jebm.evaluation.step_sizes import evaluate_step_sizes

__all__ = [
    "DEFAULT_METRICS", "METRICS", "FeatureSet", "Features", "Record", "Statistics", "aupr", "auroc",
    "auroc_interval", "bootstrap_interval", "bracket", "classifier_features", "classifier_score", "evaluate",
    "evaluate_generation", "evaluate_likelihood", "evaluate_long_run", "evaluate_ood", "evaluate_reconstruction",
    "evaluate_scores", "evaluate_step_sizes", "extrapolated", "feature_set", "forward_weights", "fpr95",
    "frechet_distance", "generate_images", "inception_features", "kernel_distance", "long_chains", "merge",
    "one_resolution", "outliers", "precision_recall", "psnr", "random_features", "read_all", "read_record",
    "reverse_weights", "run_protocol", "source_features", "ssim", "statistics", "tune_steps", "write_record",
]  # fmt: skip
