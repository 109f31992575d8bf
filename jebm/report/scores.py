"""What the scores of `jebm.evaluation` mean, for a reader: group, direction, a sentence, yardsticks."""

import re
from collections.abc import Mapping, Sequence

from jebm.evaluation import Record
from jebm.evaluation.yardsticks import COMPARED, YARDSTICKS, same, verdict
from jebm.methods.base import Better, Score

__all__ = [
    "ARROWS", "DETECTORS", "GROUPS", "NULLS", "beside", "direction", "explained", "grouped", "nulls", "title",
    "yardsticks",
]  # fmt: skip

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
        "duplicates": Score(
            "Share of generated images with another one nearer than real images ever come: 1 % of real ones.", "lower"
        ),
        "nearest_training": Score(
            "Median distance to the nearest training image, in grey levels: copies of training images are at 0."
        ),
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


def direction(record: Record, own: Mapping[str, Score]) -> Better:
    """Which way a record gets better; None where neither, and of any in a weak space, which ranks nothing."""
    return None if record.protocol.get("space", {}).get("weak") else explained(record.metric, own).better


def yardsticks(record: Record, records: Sequence[Record]) -> dict[str, float]:
    """What a record is to be compared with: real images and null models in words, and their values.

    They are measured against the same images, in the same features and at the same step.
    """
    return {
        words: other.value
        for suffix, words in YARDSTICKS.items()
        for other in records
        if other.metric == f"{record.metric}_{suffix}" and same(other, record)
    }


def beside(records: Sequence[Record]) -> list[str]:
    """Lines of text: each score of generated images beside its yardsticks, and what comes of it; none without any."""
    rows = []
    for record in records:
        if record.metric in COMPARED and (found := yardsticks(record, records)):
            values = [record.value, *(found.get(words) for words in YARDSTICKS.values())]
            rows.append([record.metric, *("-" if value is None else f"{value:.4g}" for value in values)])
    if not rows:
        return []
    lines = ["beside real images and null models, as many and in the same space:"]
    for row in [["", "this model", *YARDSTICKS], *rows]:
        lines.append(f"  {row[0]:28s} " + " ".join(f"{cell:>10s}" for cell in row[1:]))
    return [*lines, *([f"  {line}"] if (line := verdict(records)) else [])]


def nulls(record: Record) -> dict[str, float]:
    """What null models achieve where a record's energy achieves its value, by their names."""
    measure = record.metric.partition("_")[0]
    values = {name: record.protocol.get(f"{measure}_of_{key}") for key, name in NULLS.items()}
    return {name: value for name, value in values.items() if value is not None}
