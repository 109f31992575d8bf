"""What the scores of `jebm.evaluation` mean, for a reader: group, direction, a sentence, the yardstick."""

import re
from collections.abc import Mapping, Sequence

from jebm.evaluation import Record
from jebm.methods.base import Score

__all__ = ["ARROWS", "DETECTORS", "GROUPS", "NULLS", "explained", "grouped", "nulls", "title", "yardstick"]

ARROWS = {"lower": "↓", "higher": "↑", None: ""}
"""Beside a score: the better direction."""

GROUPS: dict[str, dict[str, Score]] = {
    "Generated images": {
        "fid": Score("Fréchet distance of generated from test images, in Inception's features.", "lower"),
        "fid_infinity": Score("The same, extrapolated to infinitely many generated images.", "lower"),
        "kid": Score("Kernel distance (squared) from test images; unbiased, so that it may fall below 0.", "lower"),
        "frechet_distance": Score(
            "Fréchet distance of generated from test images, in a substitute's features.", "lower"
        ),
        "frechet_distance_infinity": Score("The same, extrapolated to infinitely many generated images.", "lower"),
        "kernel_distance": Score(
            "Kernel distance (squared) from test images; unbiased, so that it may fall below 0.", "lower"
        ),
        "precision": Score("Share of generated images that lie among the test images.", "higher"),
        "recall": Score("Share of test images that lie among the generated ones.", "higher"),
        "classifier_score": Score("Confidence and variety of a classifier's answers on generated images.", "higher"),
    },
    "Reconstruction": {
        "reconstruction_error": Score("Mean squared error of test images through the encoder, in [-1, 1].", "lower"),
        "reconstruction_psnr": Score("The same error, in dB.", "higher"),
        "reconstruction_ssim": Score("Structural similarity of test images to their reconstructions.", "higher"),
    },
    "Likelihood": {
        "bits_per_dimension_lower": Score("Lower end of the bracket of bits a number of a test image.", "lower"),
        "bits_per_dimension_upper": Score("Upper end of that bracket.", "lower"),
        "log_partition_lower": Score("Lower end of the bracket of log Z."),
        "log_partition_upper": Score("Upper end of that bracket."),
    },
    "Step sizes that the energy asks for": {
        "step_size_short_run": Score("Langevin's η at which a step drifts as far as its noise goes."),
        "step_size_mala": Score("MALA's step size at its best acceptance."),
        "step_size_hmc": Score("HMC's step size at its best acceptance."),
    },
}
"""Names of records by group; outliers, long runs and a family's own scores have their own places."""

DETECTORS = {
    "auroc": Score("Chance that an outlier has a higher energy than a test image.", "higher"),
    "aupr": Score("Mean precision of telling outliers, over all thresholds.", "higher"),
    "fpr95": Score("Share of test images taken for outliers where 95 % of these are found.", "lower"),
}
"""Of each set of outliers: ``<detector>_<set>``."""

OWN = "The family's own, on test images"

NULLS = {"compressed_size": "file size", "channel_statistics": "brightness"}
"""Null models beside the energy: what is achieved without one."""


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by group, in the order of `GROUPS`; then a family's own, and those that no group knows."""
    known = {metric: group for group, scores in GROUPS.items() for metric in scores}
    places = [*known, *sorted({record.metric for record in records} - set(known))]
    groups: dict[str, list[Record]] = {group: [] for group in (*GROUPS, OWN, "Other")}
    for record in sorted(records, key=lambda record: places.index(record.metric)):
        groups[known.get(record.metric, OWN if record.metric.startswith("score_") else "Other")].append(record)
    return {group: members for group, members in groups.items() if members}


def explained(metric: str, own: Mapping[str, Score]) -> Score:
    """The meaning of a record, ``own`` being the scores of the family; empty for one that nobody explains."""
    if metric.startswith("score_"):
        return own.get(metric.removeprefix("score_"), Score(""))
    known = {**DETECTORS, **{name: score for scores in GROUPS.values() for name, score in scores.items()}}
    return known.get(metric, known.get(metric.partition("_")[0], Score("")))


def title(metric: str) -> str:
    """A record's name in words."""
    name = metric.removeprefix("score_").replace("_", " ")
    known = {"fid": "FID", "kid": "KID", "elbo": "ELBO", "kl": "KL divergence", "fid infinity": "FID∞"}
    known |= {"reconstruction psnr": "PSNR", "reconstruction ssim": "SSIM", "reconstruction error": "squared error"}
    return re.sub(r"^frechet", "Fréchet", known.get(name, name))


def yardstick(record: Record, records: Sequence[Record]) -> tuple[str, float] | None:
    """What a record is to be compared with, in words and as a number: real images, or None.

    It is measured against the same images, in the same features and at the same step.
    """
    for other in records:
        same = all(other.protocol.get(k) == record.protocol.get(k) for k in ("step", "weights", "split", "features"))
        if other.metric == f"{record.metric}_real" and same:
            return "real images", other.value
    return None


def nulls(record: Record) -> dict[str, float]:
    """What null models achieve where a record's energy achieves its value, by their names."""
    measure = record.metric.partition("_")[0]
    values = {name: record.protocol.get(f"{measure}_of_{key}") for key, name in NULLS.items()}
    return {name: value for name, value in values.items() if value is not None}
