"""Measurements of a model, and records that say how each was taken."""

from jebm.evaluation.detection import evaluate_ood
from jebm.evaluation.generation import draw_samples, evaluate_generation, generate_images
from jebm.evaluation.held_out import evaluate_scores
from jebm.evaluation.likelihood import evaluate_likelihood
from jebm.evaluation.long_run import evaluate_long_run, long_chains
from jebm.evaluation.measurements import DEFAULT_METRICS, METRICS, evaluate
from jebm.evaluation.reconstruction import evaluate_reconstruction
from jebm.evaluation.records import Record, read_all, read_record, run_protocol, write_record
from jebm.evaluation.run import evaluate_run
from jebm.evaluation.space import space_quality
from jebm.evaluation.step_sizes import evaluate_step_sizes
from jebm.evaluation.subject import Samples, Subject
from jebm.evaluation.yardsticks import verdict
from jebm.metrics.annealed_importance import bracket, forward_weights, reverse_weights, tune_steps
from jebm.metrics.detection import aupr, auroc, auroc_interval, bootstrap_interval, fpr95
from jebm.metrics.feature_statistics import FeatureSet, feature_set
from jebm.metrics.features import Features, classifier_features, random_features, source_features
from jebm.metrics.frechet import Statistics, extrapolated, frechet_distance, merge, statistics
from jebm.metrics.image_quality import psnr, ssim
from jebm.metrics.inception import inception_features
from jebm.metrics.kernel import classifier_score, kernel_distance, precision_recall
from jebm.metrics.outlier_sets import match_resolutions, outliers

__all__ = [
    "DEFAULT_METRICS", "METRICS", "FeatureSet", "Features", "Record", "Samples", "Statistics", "Subject", "aupr",
    "auroc", "auroc_interval", "bootstrap_interval", "bracket", "classifier_features", "classifier_score",
    "draw_samples", "evaluate", "evaluate_run",
    "evaluate_generation", "evaluate_likelihood", "evaluate_long_run", "evaluate_ood", "evaluate_reconstruction",
    "evaluate_scores", "evaluate_step_sizes", "extrapolated", "feature_set", "forward_weights", "fpr95",
    "frechet_distance", "generate_images", "inception_features", "kernel_distance", "long_chains", "merge",
    "match_resolutions", "outliers", "precision_recall", "psnr", "random_features", "read_all", "read_record",
    "reverse_weights", "run_protocol", "source_features", "space_quality", "ssim", "statistics", "tune_steps",
    "verdict", "write_record",
]  # fmt: skip
