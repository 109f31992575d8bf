"""Restoration of held-out images: A⁺y alone, an uncalibrated VAE as the prior, the calibrated one, and its energy.

    jebm train configs/digits/ec_vae.py --workdir runs/digits_calibrated
    jebm train configs/digits/ec_vae.py --workdir runs/digits_uncalibrated \
        --set method.calibration.dual_initial=0 --set method.calibration.dual_max=0
    python benchmarks/restoration.py --calibrated runs/digits_calibrated --uncalibrated runs/digits_uncalibrated \
        --tasks superres-2 inpaint-box deblur-uniform compressed-0.25 --num 64 --out results/restoration_digits

Writes the figures (means over images, and the standard error of the mean difference to the uncalibrated VAE) to
OUT.json, both for the restart that is kept and for the mean of the restarts, beside how far these differ (the standard
deviation of a pixel). A strip goes to OUT.png: degraded, A⁺y, restored, original from left to right, three images a
task; restored is the last arm's.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jebm import images
from jebm.metrics.image_quality import psnr
from jebm.restoration import Operator, Prior, RestorationConfig, restore
from jebm.restoration import prior as prior_of
from jebm.restoration.files import measure
from jebm.restoration.tasks import Task
from jebm.runs.run import load, load_source

TASKS = {
    "superres-2": Task("superres", factor=2),
    "superres-4": Task("superres", factor=4),
    "superres-bicubic-4": Task("superres", factor=4, downsampling="bicubic"),
    "inpaint-box": Task("inpaint"),
    "inpaint-random": Task("inpaint", mask="random", fraction=0.25),
    "colorize": Task("colorize"),
    "deblur-uniform": Task("deblur", kernel="uniform"),
    "compressed-0.25": Task("compressed", fraction=0.25),
    "compressed-0.5": Task("compressed", fraction=0.5),
}


def picture(operator: Operator, y: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Something to look at of a measurement: itself where it is an image, enlarged; else A⁺y."""
    if y.ndim != 3:
        y = operator.pseudo_inverse(y)
    y = jnp.repeat(jnp.repeat(y, shape[0] // y.shape[0], 0), shape[1] // y.shape[1], 1)
    return np.asarray(jnp.broadcast_to(jnp.clip(y, -1, 1), shape))


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrated", required=True)
    parser.add_argument("--uncalibrated", required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, required=True)
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--descent-steps", type=int, default=200)
    parser.add_argument("--likelihood-std", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()

    runs = {name: load(getattr(options, name)) for name in ("uncalibrated", "calibrated")}
    priors: dict[str, Prior] = {name: prior_of(run) for name, run in runs.items()}
    arms = {
        "uncalibrated": (priors["uncalibrated"], 0.0),
        "calibrated": (priors["calibrated"], 0.0),
        "calibrated, energy": (priors["calibrated"], 1.0),
    }
    shape = runs["calibrated"].method.image_shape
    originals = jnp.asarray(
        images.from_uint8(
            load_source(runs["calibrated"].config, runs["calibrated"].method.image_shape).test[: options.num]
        )
    )
    rows, strip = [], []
    for name in options.tasks:
        operator = TASKS[name].operator(shape)
        y = jax.vmap(operator.apply)(originals)
        scores = {}
        for arm, (prior, weight) in arms.items():
            config = RestorationConfig(
                restarts=options.restarts, descent_steps=options.descent_steps, energy_weight=weight,
                likelihood_std=options.likelihood_std,
            )  # fmt: skip
            start = time.process_time()
            restored = jax.block_until_ready(restore(jax.random.key(options.seed), prior, operator, y, config))
            scores[arm] = measure(restored, operator, y, originals)
            mean = jnp.clip(restored.samples.mean(1), -1.0, 1.0)
            scores[arm]["psnr_mean"] = psnr(np.asarray(mean), np.asarray(originals))
            spread = float(jnp.sqrt(restored.samples.var(1, ddof=1).mean()))
            row = {"task": name, "arm": arm, "processor_seconds": round(time.process_time() - start, 1)}
            row |= {key: round(float(value.mean()), 5) for key, value in scores[arm].items()}
            row |= {"spread": round(spread, 4)}
            for which in ("psnr", "psnr_mean"):
                gain = scores[arm][which] - scores["uncalibrated"][which]
                row |= {f"{which}_gain": round(float(gain.mean()), 3)}
                row |= {f"{which}_gain_error": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 3)}
            rows.append(row)
            print(f"{name:18s} {arm:18s} PSNR {row['psnr']:6.2f}, of the mean {row['psnr_mean']:6.2f} (A⁺y "
                  f"{row['psnr_pseudo_inverse']:6.2f})  SSIM {row['ssim']:.3f} ({row['ssim_pseudo_inverse']:.3f})  "
                  f"spread {spread:.3f}  consistency {row['consistency_error']:.1e}  {row['processor_seconds']} s",
                  flush=True)  # fmt: skip
        for i in range(3):
            plain = jnp.clip(operator.pseudo_inverse(y[i]), -1, 1)
            strip += [picture(operator, y[i], shape), plain, restored.images[i], originals[i]]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    about = {
        "command": "python " + " ".join(sys.argv), "commit": commit.strip(), "hardware": f"{platform.machine()}, CPU",
        "seed": options.seed, "images": options.num, "settings": dataclasses.asdict(config),
        "training_steps": {name: run.step for name, run in runs.items()},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    picture_strip = images.grid(jnp.stack([jnp.asarray(image) for image in strip]), columns=12)
    images.save_png(options.out.with_suffix(".png"), picture_strip, smallest_side=400)


if __name__ == "__main__":
    main()
