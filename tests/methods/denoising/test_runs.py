"""Runs of Denoising-EBM as a user starts them: outliers scored, mistakes named."""

import json
import sys

import numpy as np
import pytest
from helpers import ROOT
from helpers.runs import command
from sklearn.metrics import roc_auc_score

from jebm.commands.main import main

TINY_DENOISING = '''
"""A tiny Denoising-EBM."""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import DenoisingEBMConfig
from jebm.methods.denoising.chains import SemanticChainConfig, RefinementConfig


def get_config():
    return Config(
        method=DenoisingEBMConfig(
            image_size=8, channels=1, semantic_chain="pixel", width=4, multipliers=(1,), num_blocks=1,
            head_outputs=3, head_width=8,
            semantic_levels=3, chain=SemanticChainConfig(num_steps=2), refinement=RefinementConfig(num_levels=2,
            steps_per_level=2), learning_rate=2e-3, warmup_steps=0, negatives="bank", bank_size=8,
        ),
        data=DataConfig(source="digits", batch_size=8),
        training=TrainingConfig(num_steps=12, log_every=2, sample_every=6, checkpoint_every=3, num_samples=5),
        evaluation=EvaluationConfig(num_samples=32, batch_size=16),
    )
'''


@pytest.fixture(scope="module")
def denoising(tmp_path_factory):
    """(the experiment's file, the directory of a run of it that nothing stopped)."""
    folder = tmp_path_factory.mktemp("denoising")
    (folder / "tiny.py").write_text(TINY_DENOISING)
    assert main(command(folder / "tiny.py", folder / "run")) == 0
    return folder / "tiny.py", folder / "run"


def test_outliers_by_both_energies_are_recomputed_from_their_scores(denoising, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import denoising_ood

    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)  # colour, and of another size
    np.savez(tmp_path / "other.npz", x=images)
    out, scores = tmp_path / "ood.json", tmp_path / "scores"
    words = [str(denoising[1]), "--outside", f"npz:{tmp_path / 'other.npz'}", "--num", "30", "--batch", "30"]
    monkeypatch.setattr(sys, "argv", ["denoising_ood.py", *words, "--out", str(out), "--scores", str(scores)])
    monkeypatch.setattr(denoising_ood, "NUM_RESAMPLES", 20)
    denoising_ood.main()
    written = json.loads(out.read_text())
    assert {row["outliers"] for row in written["rows"]} == {
        "uniform_noise", "constant", "shuffled", "interpolation", "other",
    }  # fmt: skip
    for row in written["rows"]:
        with np.load(scores / f"{row['outliers']}.npz") as file:
            inside, outside = file[f"{row['score']}/in"], file[f"{row['score']}/out"]
        assert (len(inside), len(outside)) == (row["n_in"], row["n_out"]) == (30, 30)
        expected = roc_auc_score(np.repeat([0, 1], 30), np.concatenate([inside, outside]))
        assert row["auroc"] == pytest.approx(expected, abs=1e-12)
        assert row["interval_95"][0] <= row["auroc"] <= row["interval_95"][1]
        assert bool(row["resize"]) == (row["outliers"] == "other")
    by = {(row["outliers"], row["score"]): row["auroc"] for row in written["rows"]}
    assert by["constant", "png_size"] == 0  # nothing is simpler, so a small file counts as near to the data
    assert by["uniform_noise", "png_size"] == 1
    # the sum is the model's own energy of the same images
    with np.load(scores / "constant.npz") as file:
        both = file["semantic/in"] + file["texture/in"]
        np.testing.assert_allclose(file["sum/in"], both, rtol=1e-6)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method.semantic_energy=vectornorm", "semantic_energy='vectornorm' is unknown"),
        ("method.semantic_sigma_min=1.5", "levels must fall"),
        ("method.sigma_min=3", "levels must fall"),
        ("method.refinement.sigma_start=0.001", "levels must fall"),
        ("method.chain.num_steps=0", "num_steps=0 is out of range"),
        ("method.refinement.steps_per_level=0", "steps_per_level=0 is out of range"),
        ("method.semantic_chain=pixels", "expected one of 'latent', 'pixel'"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(tmp_path, capsys, assignment, message):
    words = command(ROOT / "configs/digits/denoising_ebm.py", tmp_path / "run", assignment)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()
