"""The session on an accelerator, tried at tiny sizes on a CPU: a typing error there would cost its minutes."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_every_stage_leaves_its_file(tmp_path):
    out, environment = tmp_path / "out", {**os.environ, "PYTHON": sys.executable}
    environment |= {"OUT": str(out), "RUN": str(tmp_path / "run"), "SECONDS_TO_TRAIN": "600"}
    command = [ROOT / "benchmarks/gpu_session.sh", "--dry-run", "chains", "steps", "train", "score"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {name: json.loads((out / f"{name}.json").read_text()) for name in ("chains", "steps", "denoising")}
    chains, steps, scores = written.values()
    assert {row["library"] for row in chains[1:]} >= {"jebm", "jebm, bfloat16"}
    assert steps[0]["median s"] > 0
    names = [row["name"] for row in scores["rows"]]
    assert names[-3:] == ["real test images", "pixel Gaussian", "mixture of 30 on 40 components"]
    assert all("frechet_distance" in row and "fid" not in row for row in scores["rows"])  # no Inception was given


def test_unknown_stages_are_refused(tmp_path):
    done = subprocess.run(
        [ROOT / "benchmarks/gpu_session.sh", "chain"], env={**os.environ, "OUT": str(tmp_path / "out")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown stage 'chain'" in done.stderr
    assert not (tmp_path / "out").exists()
