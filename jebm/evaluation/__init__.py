"""Measurements of a model, and records that say how each was taken."""

from jebm.evaluation.features import Features, classifier_features, random_features, source_features
from jebm.evaluation.frechet import Statistics, frechet_distance, statistics
from jebm.evaluation.measure import (
    METRICS,
    evaluate,
    evaluate_generation,
    evaluate_ood,
    evaluate_reconstruction,
    evaluate_scores,
    generate_images,
)
from jebm.evaluation.ood import auroc, auroc_interval, outliers
from jebm.evaluation.records import Record, read_all, read_record, run_protocol, write_record

__all__ = [
    "METRICS", "Features", "Record", "Statistics", "auroc", "auroc_interval", "classifier_features",
    "evaluate", "evaluate_generation", "evaluate_ood", "evaluate_reconstruction", "evaluate_scores",
    "frechet_distance", "generate_images", "outliers", "random_features", "read_all", "read_record",
    "run_protocol", "source_features", "statistics", "write_record",
]  # fmt: skip
