"""Does the hat's chain improve what its generator makes? Synthesis, refinement and retrofit, before and after.

    python benchmarks/hat_ebm.py --experiments digits --seeds 0 1 2 --out results/hat_ebm_digits.json
    python benchmarks/hat_ebm.py --experiments digits --seeds 0 --long --out results/hat_ebm_long.json

Per application and seed a hat is trained (in refinement over a variational autoencoder stopped early, in retrofit over
the decoder of an autoencoder), then the same latents are measured three times: ``start`` G(z_0), the generator alone;
``moved`` G(z_K), where the chain moves z; ``end`` G(z_K) + y_K, the sample. With ``--long`` chains run to 100 times
the Langevin steps of training. Fréchet distances are in the feature space that each file names; they are not FID.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jebm
from jebm import images
from jebm.commands.main import main as command_line
from jebm.data import Source, to_float
from jebm.evaluation import Statistics, frechet_distance, source_features, statistics
from jebm.methods.hat.chains import run_chains
from jebm.methods.hat.ebm import base_generator, networks, starts
from jebm.runs.run import Run, load_source

MULTIPLES = (1.0, 2.5, 10.0, 100.0)
PICTURES = 12


class Experiment(NamedTuple):
    """The files of one application, and what is changed in them.

    Attributes:
        hat: the hat's configuration.
        base: that of the generator under it; empty in synthesis.
        settings: changes to the hat's.
        base_settings: changes to the base's.
    """

    hat: str
    base: str = ""
    settings: tuple[str, ...] = ()
    base_settings: tuple[str, ...] = ()


MNIST = ("data.source=npz:data/mnist.npz", "method.channels=1")
NO_CALIBRATION = tuple(f"method.calibration.{name}" for name in ("num_steps=1", "dual_initial=0", "dual_max=0"))
EXPERIMENTS: dict[str, dict[str, Experiment]] = {
    "digits": {
        "synthesis": Experiment("configs/digits/hat_synthesis.py"),
        "refinement": Experiment(
            "configs/digits/hat_refinement.py", "configs/digits/ec_vae.py", (), ("training.num_steps=50",)
        ),
        "retrofit": Experiment("configs/digits/hat_retrofit.py", "configs/digits/hat_autoencoder.py"),
    },
    "mnist": {
        "synthesis": Experiment("configs/small/hat_synthesis.py", "", MNIST),
        "refinement": Experiment(
            "configs/small/hat_refinement.py", "configs/small/ec_vae_mnist.py", (*MNIST, "method.latent_size=32"),
            ("training.num_steps=60", *NO_CALIBRATION),
        ),
        "retrofit": Experiment("configs/small/hat_retrofit.py", "configs/small/hat_autoencoder.py", MNIST, MNIST),
    },
    "cifar10": {
        "synthesis": Experiment("configs/small/hat_synthesis.py"),
        "refinement": Experiment(
            "configs/small/hat_refinement.py", "configs/small/ec_vae_cifar10.py", (),
            ("training.num_steps=60", *NO_CALIBRATION),
        ),
        "retrofit": Experiment("configs/small/hat_retrofit.py", "configs/small/hat_autoencoder.py"),
    },
}  # fmt: skip


class Ends(NamedTuple):
    """Chains, [n, ...].

    Attributes:
        z: latents.
        y: residuals.
        generated: G(z).
        energy: ``H(G(z) + y)``.
    """

    z: Array
    y: Array
    generated: Array
    energy: Array


def train(config: str, settings: Sequence[str], seed: int, directory: pathlib.Path) -> float:
    """Trains, or resumes; returns the seconds."""
    chosen = [*settings, f"training.seed={seed}", "training.evaluate_at_end=false", "training.sample_every=0"]
    start = time.perf_counter()
    words = [word for setting in chosen for word in ("--set", setting)]
    status = command_line(["train", config, "--workdir", str(directory), *words])
    if status:
        raise SystemExit(status)
    return time.perf_counter() - start


def chains(run: Run, num_steps: int, batch_size: int = 250) -> Callable[[Array, Array, Array], Ends]:
    """(key, z, y) -> where test chains of ``num_steps`` end, ``batch_size`` of them at a time."""
    config = run.config.method
    base = base_generator(config, run.method.generator(run.state) if config.generator_run else None)
    chain = dataclasses.replace(config.test_chain, num_steps=num_steps)

    @jax.jit
    def one_batch(state: Any, key: Array, z: Array, y: Array) -> Ends:
        hat, generator = networks(config, base, state)
        ends = run_chains(key, hat, generator, z, y, chain, config.temperature)
        return Ends(ends.z, ends.y, ends.image - ends.y, jax.vmap(hat)(ends.image))

    def all_batches(key: Array, z: Array, y: Array) -> Ends:
        parts = [
            one_batch(run.state, jax.random.fold_in(key, i), z[i : i + batch_size], y[i : i + batch_size])
            for i in range(0, len(z), batch_size)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    return all_batches


class Yardstick(NamedTuple):
    """Measurement of images.

    Attributes:
        source: the images, at the method's size.
        features: uint8 images to features.
        declaration: which feature space it is.
        held_out: statistics of the test images.
    """

    source: Source
    features: Callable[[np.ndarray], np.ndarray]
    declaration: dict[str, Any]
    held_out: Statistics

    def distance(self, pictures: Array) -> float | None:
        """The Frechet distance to the test images; None for images that are not finite."""
        if not bool(jnp.isfinite(pictures).all()):
            return None
        return frechet_distance(statistics(self.features(images.to_uint8(pictures))), self.held_out)


def yardstick(source: Source) -> Yardstick:
    """The classifier trained on the training images; the test images' statistics."""
    features = source_features(source)
    return Yardstick(source, features.function, features.declaration, statistics(features.function(source.test)))


def before_and_after(run: Run, measure: Yardstick, n: int) -> tuple[dict[str, Any], np.ndarray]:
    """One row, and a few pictures before and after."""
    key = jax.random.key(run.config.training.seed)
    z, y = starts(run.config.method, jax.random.fold_in(key, 0), n)
    alone = chains(run, 0)(key, z, jnp.zeros_like(y)).generated
    ends = chains(run, run.config.method.test_chain.num_steps)(jax.random.fold_in(key, 1), z, y)
    sample = ends.generated + ends.y
    row = {
        "start": measure.distance(alone),
        "moved": None if run.config.method.application == "synthesis" else measure.distance(ends.generated),
        "end": measure.distance(sample),
        "langevin_steps": run.config.method.test_chain.num_steps,
    }
    return row, np.concatenate([images.to_uint8(a[:PICTURES]) for a in (alone, sample)])


def along_the_chain(run: Run, measure: Yardstick, n: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows at multiples of the training steps, and pictures of each."""
    config = run.config.method
    key = jax.random.key(run.config.training.seed)
    z, y = starts(config, jax.random.fold_in(key, 0), n)
    stretch = config.chain.num_steps // 2  # goes an odd number of times into 2.5
    move, data = chains(run, stretch), to_float(measure.source.test)
    on_data = float(np.mean(run.method.temperature * jax.vmap(run.energy)(data)))
    rows, strips, done = [], [], 0
    for multiple in MULTIPLES:
        while done < round(multiple * config.chain.num_steps):
            ends = move(jax.random.fold_in(key, 1 + done), z, y)
            z, y, done = ends.z, ends.y, done + stretch
        sample = ends.generated + y
        norm = lambda a: float(jnp.linalg.norm(a.reshape(len(a), -1), axis=1).mean())  # noqa: E731
        rows.append(
            {
                "multiple": multiple,
                "langevin_steps": done,
                "distance": measure.distance(sample),
                "energy_gap": float(ends.energy.mean()) - on_data,
                "residual_norm": norm(y),
                "latent_norm": norm(z),
                "outside": float((jnp.abs(sample) > 1).mean()),
            }
        )
        strips.append(images.to_uint8(jnp.nan_to_num(sample[:PICTURES])))
    return rows, np.concatenate(strips)


def measured(
    name: str, applications: Sequence[str], seeds: Sequence[int], settings: Sequence[str], n: int, long: bool,
    workdir: pathlib.Path, on_row: Callable[[dict[str, Any], dict[str, Any], np.ndarray], None],
) -> None:  # fmt: skip
    """Trains what is not trained yet, and measures; ``on_row`` sees each row as soon as it is there."""
    measure = None
    for seed in seeds:
        for application in applications:
            experiment = EXPERIMENTS[name][application]
            directory = workdir / f"{name}_{application}_{seed}"
            changes = [*experiment.settings, *settings]
            if experiment.base:
                base = directory.with_name(directory.name + "_base")
                train(experiment.base, experiment.base_settings, seed, base)
                changes.append(f"method.generator={base}")
            seconds = train(experiment.hat, changes, seed, directory)
            run = jebm.load(directory)
            measure = measure or yardstick(load_source(run.config, run.method.image_shape))
            about = {
                "experiment": name, "application": application, "seed": seed,
                "training_steps": run.step, "n": n,
            }  # fmt: skip
            if long:
                rows, pictures = along_the_chain(run, measure, n)
            else:
                row, pictures = before_and_after(run, measure, n)
                rows = [{**row, "training_seconds": round(seconds)}]
            for row in rows:
                on_row({**about, **row}, measure.declaration, pictures)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", choices=EXPERIMENTS, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY.PATH=VALUE", help="of hats")
    parser.add_argument(
        "--applications", choices=("synthesis", "refinement", "retrofit"), nargs="+",
        default=["synthesis", "refinement", "retrofit"],
    )  # fmt: skip
    parser.add_argument("--num", type=int, default=1000, help="images per distance")
    parser.add_argument("--long", action="store_true")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/hat_ebm"), help="resumed if it exists"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a .json; pictures lie beside it")
    options = parser.parse_args()
    here = str(pathlib.Path(__file__).parent)
    git = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout
    written: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit.strip(),
        "hardware": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
        "seeds": options.seeds,
        "rows": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: dict[str, Any], features: dict[str, Any], pictures: np.ndarray) -> None:
        written["features"] = features
        written["rows"].append(row)
        options.out.write_text(json.dumps(written, indent=2) + "\n")
        if row["seed"] == options.seeds[0]:
            strip = images.grid(images.from_uint8(pictures), columns=PICTURES)
            path = options.out.with_name(f"{options.out.stem}_{row['application']}.png")
            images.save_png(path, strip, smallest_side=150)  # digits come out enlarged
        print(json.dumps(row), flush=True)

    measured(
        options.experiments, options.applications, options.seeds, options.settings, options.num, options.long,
        options.workdir, keep,
    )  # fmt: skip


if __name__ == "__main__":
    main()
