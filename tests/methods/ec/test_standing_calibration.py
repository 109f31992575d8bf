"""The standing test: calibration must improve the samples, on every seed."""

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_calibrated_samples_are_nearer_to_held_out_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import calibration

    rows = calibration.measure(str(ROOT / "configs/digits/ec_vae.py"), seeds=(0, 1, 2))
    distance = {(row["seed"], row["arm"]): row["frechet_distance"] for row in rows}
    for seed in (0, 1, 2):
        assert distance[seed, "calibrated"] < distance[seed, "uncalibrated"], distance
