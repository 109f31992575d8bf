"""Outliers under both energies of a trained Denoising-EBM, beside baselines of complexity and brightness.

    python benchmarks/denoising_ood.py runs/denoising_cifar10 --outside npz:data/gtsrb32.npz npz:data/dtd64.npz \
        --out results/denoising_ebm_ood_cifar10.json --scores runs/scores_cifar10

The level σ* is the run's ``score_sigma``, set before any outlier was seen; ``*_over_levels`` are means over the whole
semantic ladder. Sums of unlike parts are of parts standardised on training images, which need no choice either; `sum`
is the model's own energy. An AUROC is the probability that an outlier scores higher, below 1/2 if the energy prefers
outliers. Both sets go through the same resizing. All scores are written, as ``<set>.npz`` with ``<score>/in`` and
``<score>/out``, so that other programs can recompute every number.
"""

import argparse
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from denoising_ebm import about
from PIL import Image

import jebm
from jebm.data import load, to_float
from jebm.evaluation import auroc, auroc_interval, match_resolutions
from jebm.methods.denoising.ebm import part_energies
from jebm.methods.denoising.model import semantic_levels
from jebm.metrics.batches import map_batches
from jebm.metrics.outlier_sets import channel_statistics, outliers
from jebm.runs.run import Run, load_source

Scores = dict[str, np.ndarray]
NUM_RESAMPLES = 500


class Scorer:
    """All scores of images, uint8 [N, H, W, C], as float64 [N]; higher is further from the data.

    Args:
        run: a trained Denoising-EBM.
        training: training images, which give the standards of parts and the baseline's law.
        batch_size: images at once.
    """

    def __init__(self, run: Run, training: np.ndarray, batch_size: int) -> None:
        self.config, self.state, self.batch_size = run.config.method, run.state, batch_size
        levels = jnp.asarray([self.config.score_sigma, *semantic_levels(self.config)], jnp.float32)
        self.parts = jax.jit(
            lambda state, x: jax.lax.map(lambda sigma: part_energies(self.config, state, x, sigma), levels)
        )
        self.training = training
        known = self._parts(training)
        self.standards = {name: (values.mean(0), values.std(0) + 1e-12) for name, values in known.items()}

    def _parts(self, images: np.ndarray) -> Scores:
        """Each part at σ* and at the levels, [N, 1 + levels]."""
        of = lambda name: map_batches(  # noqa: E731
            lambda _, batch: self.parts(self.state, to_float(batch))[name].T, images, self.batch_size
        )
        return {name: of(name).astype(np.float64) for name in ("semantic", "texture")}

    def __call__(self, images: np.ndarray) -> Scores:
        """The scores by name."""
        parts = self._parts(images)
        unit = {name: (values - self.standards[name][0]) / self.standards[name][1] for name, values in parts.items()}
        return {
            "semantic": parts["semantic"][:, 0],
            "texture": parts["texture"][:, 0],
            "sum": parts["semantic"][:, 0] + self.config.texture_weight * parts["texture"][:, 0],
            "standardised_sum": unit["semantic"][:, 0] + unit["texture"][:, 0],
            "semantic_over_levels": unit["semantic"][:, 1:].mean(1),
            "texture_over_levels": unit["texture"][:, 1:].mean(1),
            "png_size": np.array([png_size(image) for image in images], np.float64),
            "channel_statistics": channel_statistics(images, self.training),
        }


def png_size(image: np.ndarray) -> int:
    """Bytes of uint8 [H, W, 1 or 3] as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG", optimize=True)
    return buffer.tell()


def rows_of(name: str, inside: Scores, outside: Scores, steps: Sequence[str]) -> list[dict[str, Any]]:
    """One row per score."""
    rows = []
    for score in inside:
        interval = auroc_interval(inside[score], outside[score], num_resamples=NUM_RESAMPLES)
        rows.append(
            {
                "outliers": name, "score": score, "auroc": auroc(inside[score], outside[score]),
                "interval_95": list(interval), "n_in": len(inside[score]), "n_out": len(outside[score]),
                "resize": list(steps),
            }
        )  # fmt: skip
    return rows


def few(images: np.ndarray, n: int) -> np.ndarray:
    """``n`` images, evenly spread over the set."""
    return images[np.linspace(0, len(images) - 1, min(n, len(images))).astype(int)]


def main() -> None:
    """Scores and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--outside", nargs="*", default=[], metavar="SOURCE", help="as data.source")
    parser.add_argument("--num", type=int, default=1000, help="images of each set")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--scores", type=pathlib.Path, required=True, help="a folder")
    options = parser.parse_args()
    run = jebm.load(options.run)
    source, size = load_source(run.config, run.method.image_shape), run.method.image_shape[0]
    scorer = Scorer(run, few(source.train, options.num), options.batch)
    original = few(load(run.config.data.source).test, options.num)
    own = few(source.test, options.num)
    sets: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {
        name: (own, images, []) for name, images in outliers(jax.random.key(0), own).items()
    }
    for name in options.outside:
        other = load(name)
        images = few(np.concatenate([other.train, other.test]), options.num)  # none of them was trained on
        sets[name.split("/")[-1].removesuffix(".npz")] = match_resolutions(original, images, size)
    rows: list[dict[str, Any]] = []
    options.scores.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (inside_images, outside_images, steps) in sets.items():
        inside, outside = scorer(inside_images), scorer(outside_images)
        arrays = {f"{score}/in": values for score, values in inside.items()}
        np.savez(options.scores / f"{name}.npz", **arrays, **{f"{score}/out": v for score, v in outside.items()})
        rows += rows_of(name, inside, outside, steps)
        written = {
            **about([run.config.training.seed]), "inliers": run.config.data.source, "training_steps": run.step,
            "score_sigma": run.config.method.score_sigma, "rows": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(written, indent=2) + "\n")
        table = {row["score"]: round(row["auroc"], 3) for row in rows if row["outliers"] == name}
        print(name, json.dumps(table), flush=True)


if __name__ == "__main__":
    main()
