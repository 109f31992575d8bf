"""Denoising-EBM's two stages, chains, heads and levels against each other, at equal numbers of evaluations.

    python benchmarks/denoising_ebm.py --seeds 0 1 2 --out results/denoising_ebm_digits.json
    python benchmarks/denoising_ebm.py --config configs/small/denoising_mnist.py --models pixel --seeds 0 \
        --set method.image_size=14 --out results/denoising_ebm_mnist.json

Each model is trained once per seed and sampled in two or three ways: ``two_stage``; ``texture_only``, refinement from
pure noise down a ladder as long as makes both cost the same evaluations (a gradient counts as one); ``semantic_only``.
``--levels 3 6 30`` compares the first two at several lengths of refinement. Unless ``--reference test`` asks for the
final figures, a tenth of the training images is set aside, and distances are from these.
Beside the file lies a picture per model: semantic images on top, then refinement steps, then samples. Frechet
distances are in the feature space that the file names; they are not FID.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from jebm import images
from jebm.config import Config, load_file, override
from jebm.evaluation import frechet_distance, source_features, statistics
from jebm.methods.denoising.model import DenoisingEBMConfig
from jebm.methods.denoising.sampling import evaluation_counts, synthesize
from jebm.runs.directory import RunDirectory
from jebm.runs.run import Run, load_source
from jebm.training import loop

VALIDATION = 0.1  # of the training images
MODELS: dict[str, dict[str, Any]] = {
    "pixel": {"semantic_chain": "pixel"},
    "latent": {"semantic_chain": "latent"},
    "scalar": {"semantic_chain": "pixel", "semantic_energy": "scalar"},
    "latent_scalar": {"semantic_chain": "latent", "semantic_energy": "scalar"},
    # one level for everything that the networks see, where the semantic stage hands over
    "one_level": {"semantic_chain": "pixel", "semantic_levels": 1, "sigma_max": 0.2, "semantic_sigma_min": 0.2},
    "latent_one_level": {"semantic_chain": "latent", "semantic_levels": 1, "sigma_max": 0.2, "semantic_sigma_min": 0.2},
}
SAMPLINGS = ("two_stage", "texture_only", "semantic_only")
PICTURES, STRIPS = 12, 5


def train(config: Config, directory: pathlib.Path) -> float:
    """Trains, or resumes; returns the seconds."""
    start = time.perf_counter()
    loop.train(config, RunDirectory(directory))
    return time.perf_counter() - start


def experiment(path: str, model: str, settings: Sequence[str], seed: int) -> Config:
    """The configuration of one model; its changes come at once, since one noise level is not valid half set."""
    base = override(load_file(path), [*settings, f"training.seed={seed}", "training.sample_every=0"])
    return dataclasses.replace(base, method=dataclasses.replace(base.method, **MODELS[model]))


def variants(config: DenoisingEBMConfig, num_levels: int | None) -> dict[str, DenoisingEBMConfig]:
    """The ways of sampling one model, with refinement in so many levels (None: as it is configured).

    ``texture_only`` takes as many levels as the evaluations of ``two_stage`` pay for, fewer than T of them left over.
    """
    if num_levels is not None:
        config = dataclasses.replace(config, refinement=dataclasses.replace(config.refinement, num_levels=num_levels))
    budget = sum(evaluation_counts(dataclasses.replace(config, sampling="two_stage")).values())
    levels = max(2, (budget - 1) // config.refinement.steps_per_level)
    longer = dataclasses.replace(config.refinement, num_levels=levels)
    ways = {name: dataclasses.replace(config, sampling=name) for name in SAMPLINGS}
    return ways | {"texture_only": dataclasses.replace(ways["texture_only"], refinement=longer)}


def sampled(config: DenoisingEBMConfig, run: Run, n: int, batch_size: int) -> np.ndarray:
    """``n`` samples, uint8."""
    draw = jax.jit(lambda key, state: synthesize(config, key, state, batch_size).images)
    keys = jax.random.split(jax.random.key(run.config.training.seed), -(-n // batch_size))
    return np.concatenate([images.to_uint8(draw(key, run.state)) for key in keys])[:n]


def strip(config: DenoisingEBMConfig, run: Run) -> np.ndarray:
    """Stages of samples, one sample a column: semantic image, refinement steps, sample."""
    config = dataclasses.replace(config, sampling="two_stage")
    every = max(1, evaluation_counts(config)["texture"] // STRIPS)
    draw = jax.jit(lambda key, state: synthesize(config, key, state, PICTURES, every))
    made = draw(jax.random.key(1), run.state)
    assert made.semantic is not None
    assert made.steps is not None
    rows = [made.semantic, *jnp.swapaxes(made.steps, 0, 1), made.images]
    return images.grid(jnp.clip(jnp.concatenate(rows), -1.0, 1.0), columns=PICTURES)


def measured(
    config: str, models: Sequence[str], seeds: Sequence[int], settings: Sequence[str], n: int, batch_size: int,
    levels: Sequence[int | None], workdir: pathlib.Path,
    on_row: Callable[[dict[str, Any], dict[str, Any], np.ndarray], None],
) -> None:  # fmt: skip
    """Trains what is not trained yet, and measures; ``on_row`` sees each row as soon as it is there."""
    features, held_out = None, None
    for seed in seeds:
        for model in models:
            directory = workdir / f"{pathlib.Path(config).stem}_{model}_{seed}"
            seconds = train(experiment(config, model, settings, seed), directory)
            run = jebm.load(directory)
            if features is None or held_out is None:
                source = load_source(run.config, run.method.image_shape)
                features = source_features(source)
                held_out = statistics(features.function(source.for_tuning))
            picture = strip(run.config.method, run)
            ways = [(*way, length) for length in levels for way in variants(run.config.method, length).items()]
            for sampling, chosen, length in ways:
                if sampling == "semantic_only" and (chosen.semantic_levels < 2 or length != levels[0]):
                    continue  # the one level's noise stays in it; and refinement does not touch it
                start = time.perf_counter()
                made = sampled(chosen, run, n, batch_size)
                row = {
                    "model": model, "seed": seed, "training_steps": run.step, "training_seconds": round(seconds),
                    "sampling": sampling, "evaluations": evaluation_counts(chosen), "n": n,
                    "sampling_seconds": round(time.perf_counter() - start, 1),
                    "distance": frechet_distance(statistics(features.function(made)), held_out),
                }  # fmt: skip
                on_row(row, features.declaration, picture)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits/denoising_ebm.py")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--num", type=int, default=1000, help="images per distance")
    parser.add_argument("--reference", choices=["validation", "test"], default="validation")
    parser.add_argument("--levels", type=int, nargs="+", default=[None], help="of refinement")
    parser.add_argument("--batch", type=int, default=250, help="images sampled at once")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/denoising_ebm"), help="resumed if it exists"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a .json; pictures lie beside it")
    options = parser.parse_args()
    written = {**about(options.seeds), "reference": options.reference, "rows": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: dict[str, Any], features: dict[str, Any], picture: np.ndarray) -> None:
        written["features"] = features
        written["rows"].append(row)
        options.out.write_text(json.dumps(written, indent=2) + "\n")
        if row["seed"] == options.seeds[0]:
            images.save_png(options.out.with_name(f"{options.out.stem}_{row['model']}.png"), picture, 256)
        print(json.dumps(row), flush=True)

    aside = [f"data.validation={VALIDATION}"] if options.reference == "validation" else []
    measured(
        options.config, options.models, options.seeds, [*aside, *options.settings], options.num, options.batch,
        options.levels, options.workdir, keep,
    )  # fmt: skip


def about(seeds: Sequence[int]) -> dict[str, Any]:
    """Command, commit, hardware and seeds of this measurement."""
    git = ["git", "-C", str(pathlib.Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    hardware = f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"command": "python " + " ".join(sys.argv), "commit": commit, "hardware": hardware, "seeds": list(seeds)}


if __name__ == "__main__":
    main()
