"""A trained Denoising-EBM sampled in several ways, each scored in Inception's space beside null models.

    python benchmarks/gpu/denoising.py runs/denoising_cifar10 --weights data/inception_fid.npz --out scores.json

Reference: all training images. Beside the ways of sampling stand real test images, and two null models fitted on the
training images: a Gaussian of the pixels, and a mixture of 30 Gaussians on 40 principal components. FID and KID are of
the network of that name; KID, precision and recall are of 10,000 images. Rows are written as they come.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from denoising_ebm import about

import jebm
from jebm import images
from jebm.evaluation import frechet_distance, source_features, statistics
from jebm.methods.denoising.chains import RefinementConfig
from jebm.methods.denoising.model import DenoisingEBMConfig
from jebm.methods.denoising.sampling import evaluation_counts, synthesize
from jebm.metrics.inception import inception_features
from jebm.metrics.kernel import kernel_distance, precision_recall
from jebm.runs.run import Run, load_source

SOME = 10_000  # images that KID, precision and recall are of


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--weights", type=pathlib.Path, help="Inception's; without them a substitute space, named")
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--some", type=int, default=SOME, help="images of the other ways, of the nulls, of KID")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no further row is begun")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a .json; pictures lie beside it")
    options = parser.parse_args()
    begun = time.perf_counter()
    run = jebm.load(options.run)
    source = load_source(run.config, run.method.image_shape)
    features = inception_features(options.weights) if options.weights else source_features(source)
    training = features.function(np.asarray(source.train[:]))
    reference, some = statistics(training), min(options.some, len(source.test), len(source.train))
    chosen = np.random.default_rng(0).permutation(len(training))[:some]
    # only Inception's distance is called FID
    frechet, kernel = ("fid", "kid") if options.weights else ("frechet_distance", "kernel_distance")
    written = {
        **about([0]), "run": {"step": run.step, "config": run.config.method.__class__.__name__},
        "features": features.declaration, "reference": {"split": "train", "n": reference.n}, "rows": [],
    }  # fmt: skip

    def row(name: str, n: int, draw: Callable[[int], np.ndarray], **more: Any) -> None:
        if time.perf_counter() - begun > options.limit:
            print(f"{name}: no time left")
            return
        start = time.perf_counter()
        drawn = draw(n)
        seconds = time.perf_counter() - start
        found = features.function(drawn)
        kid = kernel_distance(found[:some], training[chosen][: min(some, n)])
        near, covered = precision_recall(training[chosen][: min(some, n)], found[:some])
        scores = {
            "name": name, "n": n, frechet: frechet_distance(statistics(found), reference), kernel: kid.value,
            f"{kernel} standard error": kid.standard_error, "precision": near, "recall": covered, "seconds": seconds,
            **more,
        }  # fmt: skip
        written["rows"].append(scores)
        options.out.write_text(json.dumps(written, indent=1) + "\n")
        print(json.dumps(scores), flush=True)

    for name, n, way in ways(run.config.method, options.num, some):
        row(name, n, lambda n, way=way: sampled(way, run, n, options.batch), evaluations=evaluation_counts(way))
        picture(way, run, source, options.out.with_name(f"{options.out.stem}_{name.replace(' ', '_')}.png"))
    row("real test images", some, lambda n: np.asarray(source.test[np.sort(np.random.default_rng(1).permutation(n))]))
    row("pixel Gaussian", some, lambda n: gaussian(source.train, n))
    row("mixture of 30 on 40 components", some, lambda n: mixture(source.train, n))


def ways(config: DenoisingEBMConfig, num: int, some: int) -> list[tuple[str, int, DenoisingEBMConfig]]:
    """Ways of sampling; the first two at full n."""

    def way(sampling: str, solver: str, levels: int | None) -> DenoisingEBMConfig:
        refinement = RefinementConfig(solver=solver, num_levels=levels, sigma_start=config.refinement.sigma_start)
        return dataclasses.replace(config, sampling=sampling, refinement=refinement)

    return [
        ("texture only, flow, 71", num, way("texture_only", "heun", 36)),
        ("two stages, flow", num, way("two_stage", "heun", 10)),
        ("texture only, flow, 35", some, way("texture_only", "heun", 18)),
        ("semantic only", some, way("semantic_only", "heun", 18)),
        ("two stages, Langevin", some, way("two_stage", "langevin", None)),
    ]


def sampled(config: DenoisingEBMConfig, run: Run, n: int, batch: int) -> np.ndarray:
    """``n`` samples, uint8; batch i has the key ``fold_in(key(0), i)``."""
    batch = min(batch, n)
    draw = jax.jit(lambda i, state: synthesize(config, jax.random.fold_in(jax.random.key(0), i), state, batch).images)
    return np.concatenate([images.to_uint8(draw(i, run.state)) for i in range(-(-n // batch))])[:n]


def picture(config: DenoisingEBMConfig, run: Run, source: Any, path: pathlib.Path) -> None:
    """Two rows of real images above eight of samples, the first ones drawn."""
    made = sampled(config, run, 128, 128)
    real = np.asarray(source.train[np.sort(np.random.default_rng(2).permutation(len(source.train))[:32])])
    both = images.from_uint8(np.concatenate([real, made]))
    images.save_png(path, images.grid(both, columns=16), 1024)


def gaussian(train: Any, n: int) -> np.ndarray:
    """Draws of the pixels' mean and covariance."""
    x = np.asarray(train[:]).reshape(len(train), -1).astype(np.float32)
    mean, covariance = x.mean(0), np.cov(x, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    noise = np.random.default_rng(0).standard_normal((n, len(values))) * np.sqrt(np.maximum(values, 0.0))
    return _levels(mean + noise @ vectors.T, train.shape[1:])


def mixture(train: Any, n: int) -> np.ndarray:
    """Draws of a mixture of full Gaussians on principal components, both fitted on 10,000 training images."""
    x = np.asarray(train[:]).reshape(len(train), -1)[:SOME].astype(np.float32)
    components = PCA(min(40, *x.shape), random_state=0).fit(x)
    model = GaussianMixture(min(30, len(x) // 4), random_state=0, reg_covar=1e-3).fit(components.transform(x))
    drawn = components.inverse_transform(model.sample(n)[0])
    return _levels(np.random.default_rng(0).permutation(drawn), train.shape[1:])


def _levels(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8).reshape(-1, *shape)


if __name__ == "__main__":
    main()
