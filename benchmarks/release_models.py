"""The trained models that come with jebm: trained, scored, packed into jebm/models, and described there.

Command:   python benchmarks/release_models.py [NAME ...] [--runs DIR] [--commit COMMIT]
Hardware:  2 CPU cores; minutes for each of the digits' models, half an hour for MNIST's.

A run that is complete in DIR is taken as it is, and packed as 'jebm export DIR --out FILE --card licence=...' does.
What the file gives is compared with what the run gives, so the scores of the card are those of the weights in the file:
float32, the set that the family generates with.
"""

import argparse
import datetime
import os
import pathlib
import subprocess

import jax
import numpy as np

import jebm
from jebm.commands.export import card_of
from jebm.commands.main import main
from jebm.config import load_file
from jebm.runs import packed

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIGITS = "Optical Recognition of Handwritten Digits (Alpaydin, Kaynak; UCI, CC BY 4.0), as scikit-learn bundles it"
MNIST = "MNIST (LeCun, Cortes, Burges)"
MODELS = {  # name: (configuration, what it is, its data)
    "digits/ec_vae": ("digits/ec_vae", "energy-calibrated VAE on 8x8 digits", DIGITS),
    "digits/hat_synthesis": ("digits/hat_synthesis", "Hat EBM with its cooperative generator on 8x8 digits", DIGITS),
    "digits/denoising_ebm": ("digits/denoising_ebm", "Denoising-EBM, two stages, on 8x8 digits", DIGITS),
    "mnist/ec_vae": ("small/ec_vae_mnist", "energy-calibrated VAE on MNIST, padded to 32x32", MNIST),
}
SHOWN = ("frechet_distance", "frechet_distance_real", "precision", "recall", "reconstruction_psnr")


def release(name: str, runs: pathlib.Path, commit: str) -> None:
    """Trains where that is still to be done, and packs."""
    config, what, data = MODELS[name]
    directory = runs / pathlib.Path(config).name
    command = ["train", config, "--workdir", f"runs/{directory.name}", "--set", "training.evaluate_at_end=true"]
    if not (directory / "report.html").is_file() and main([*command[:3], str(directory), *command[4:]]):
        raise SystemExit(f"{name} was not trained")
    run = jebm.load(directory)
    if run.step != load_file(config).training.num_steps:
        raise SystemExit(f"{directory} is at step {run.step}: its training is not complete")
    card = card_of(run) | {
        "what": what,
        "command": f"jebm {' '.join(command)}",
        "commit": commit,
        "data": f"{run.config.data.source}: {data}",
        "dtype": "float32",
        "hardware": f"{os.cpu_count()} CPU cores",
        "date": datetime.date.today().isoformat(),
        "licence": "Apache-2.0, the weights; the data have their own terms",
    }
    out = ROOT / "jebm/models" / f"{name}{packed.SUFFIX}"
    packed.pack(run, out, card)
    drawn = [np.asarray(model.generate(jax.random.key(0), 16)) for model in (run, jebm.load(out))]
    if not np.array_equal(*drawn):
        raise SystemExit(f"{out} draws other images than {directory}")


def page() -> str:
    """README.md of the folder."""
    lines = [
        "# Trained models", "",
        "Written by `python benchmarks/release_models.py`. `jebm.load(NAME)`, `jebm sample NAME --out samples.png`; a",
        "whole card: `jebm.load(NAME).meta[\"card\"]`. Weights are float32, those that the family generates with;",
        "optimisers are left out, so training does not go on from them. Weights: Apache-2.0.", "",
        f"| name | what | MB | step | {' | '.join(SHOWN)} | commit | command |",
        f"|---|---|---|---|{'---|' * len(SHOWN)}---|---|",
    ]  # fmt: skip
    for name, path in packed.released().items():
        card = packed.read(path).card
        scores = [f"{card['scores'][s]['value']:.4g}" if s in card["scores"] else "" for s in SHOWN]
        cells = [f"`{name}`", card["what"], f"{path.stat().st_size / 1e6:.2f}", f"{card['step']:,}", *scores]
        lines.append(f"| {' | '.join([*cells, card['commit'], '`' + card['command'] + '`'])} |")
    found = [packed.read(path).card["scores"]["frechet_distance"] for path in packed.released().values()]
    spaces = ", ".join(sorted({score["feature_space"] for score in found}))
    return "\n".join([*lines, "", f"Distances are in the spaces {spaces}, not Inception's.", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/released"), help="folder of the runs")
    parser.add_argument("--commit", help="of the code that trained them (default: that of this clone)")
    options = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in options.names or MODELS:
        if name not in MODELS:
            parser.error(f"{name}: there are {', '.join(MODELS)}")
        release(name, options.runs, options.commit or head.strip())
    (ROOT / "jebm/models/README.md").write_text(page())
