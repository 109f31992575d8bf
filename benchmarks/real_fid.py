"""FID of real CIFAR-10: 10,000 training images against the 10,000 test images. Published: 5.21.

    python benchmarks/real_fid.py --data data/cifar10.npz --weights data/inception_fid.npz --out results/real_fid.json

Features are kept in pieces under ``--workdir``, so that an interrupted run resumes: all of them take about an hour
and a half of one CPU core. The training images are the first 10,000 of the archive.
"""

import argparse
import json
import pathlib

import numpy as np
from denoising_ebm import about
from tqdm import tqdm

from jebm.evaluation import frechet_distance, statistics
from jebm.files import whole
from jebm.metrics.inception import inception_features

NUM_IMAGES, PIECE = 10_000, 250
PUBLISHED, TOLERANCE = 5.21, 0.05


def main() -> None:
    """Measures and writes; exits with 1 if the figure is further from the published one than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz with x_train and x_test")
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="as 'jebm convert inception' takes them")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/real_fid"), help="resumed if it exists"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    features = inception_features(options.weights)
    with np.load(options.data) as file:
        sets = {"train": file["x_train"][:NUM_IMAGES], "test": file["x_test"][:NUM_IMAGES]}
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for start in tqdm(range(0, NUM_IMAGES, PIECE), unit="piece"):
        for name, images in sets.items():
            path = options.workdir / f"{name}{start:05d}.npy"
            if not path.exists():
                with whole(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features.function(images[start : start + PIECE]))
            found[name].append(np.load(path))
    one, other = (statistics(np.concatenate(pieces)) for pieces in found.values())
    fid = frechet_distance(one, other)
    record = {**about([]), "fid": fid, "published": PUBLISHED, "n": NUM_IMAGES, "features": features.declaration}
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"FID {fid:.4f} at n = {NUM_IMAGES:,}; published {PUBLISHED}")
    raise SystemExit(abs(fid - PUBLISHED) > TOLERANCE)


if __name__ == "__main__":
    main()
