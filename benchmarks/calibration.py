"""Does calibration help? EC-VAE on the digits against the same VAE with λ = 0, same budget, several seeds.

    python benchmarks/calibration.py --seeds 0 1 2 --out results/ec_vae_digits.json
    python benchmarks/calibration.py --config configs/digits/ec_flow.py --seeds 0 --out results/ec_flow_digits.json

Both arms run the same chains and the same energy; in the second the multiplier λ stays 0, so the generator never sees
them. Fréchet distances are in the classifier's feature space that each record names; they are not FID.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from jebm.commands.main import main as jebm

ARMS = {
    "calibrated": [],
    "uncalibrated": ["--set", "method.calibration.dual_initial=0", "--set", "method.calibration.dual_max=0"],
}


def measure(
    config: str, seeds: Sequence[int], settings: Sequence[str] = (), arms: Sequence[str] = tuple(ARMS)
) -> list[dict[str, Any]]:
    """One row per seed and arm: all scores of ``jebm evaluate``."""
    rows = []
    for seed in seeds:
        for arm, overrides in ((arm, ARMS[arm]) for arm in arms):
            with tempfile.TemporaryDirectory() as folder:
                common = ["--set", f"training.seed={seed}", "--set", "training.evaluate_at_end=true"]
                chosen = [word for setting in settings for word in ("--set", setting)]
                status = jebm(["train", config, "--workdir", folder, *common, *chosen, *overrides])
                if status:
                    raise SystemExit(status)
                records = [json.loads(path.read_text()) for path in pathlib.Path(folder, "evaluation").glob("*.json")]
            rows.append({"seed": seed, "arm": arm, **{record["metric"]: record["value"] for record in records}})
    return rows


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits/ec_vae.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    rows = measure(options.config, options.seeds, options.settings, options.arms)
    about = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit.strip(),
        "hardware": f"{platform.machine()}, CPU",
        "seeds": options.seeds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    for row in rows:
        bits = f"  {row['score_bits_per_dim']:.3f} bits/dim" if "score_bits_per_dim" in row else ""
        print(f"seed {row['seed']}  {row['arm']:14s} Fréchet distance {row['frechet_distance']:8.2f}{bits}")


if __name__ == "__main__":
    main()
