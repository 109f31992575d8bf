"""The picture of the README: real digits beside samples of a run, with its score.

Command:   jebm train configs/digits/ec_vae.py --workdir runs/digits
           python benchmarks/readme_picture.py runs/digits --out docs/images/digits.png

The samples are the first of those that the run's evaluation scored, in their order; nothing is chosen.
"""

import argparse
import pathlib

import matplotlib
import numpy as np

from jebm import data
from jebm.evaluation import read_all
from jebm.images import grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    folder = options.run / "evaluation"
    values = {record.metric: record.value for record in read_all(folder)}
    with np.load(sorted(folder.glob("samples-*.npz"))[-1]) as arrays:
        samples = arrays[arrays.files[0]]
    real = data.load("digits").test
    distance, yardstick = values["frechet_distance"], values["frechet_distance_real"]
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 2.9), dpi=110, layout="constrained")
    for axis, images, title in (
        (axes[0], real, f"held-out digits\n(1,500 training digits are at distance {yardstick:.1f} from them)"),
        (axes[1], samples, f"samples of an energy-calibrated VAE\n(one decoder pass each; at distance {distance:.1f})"),
    ):
        axis.imshow(grid(np.asarray(images)[:72], columns=12)[..., 0], cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
