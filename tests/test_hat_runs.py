"""Runs of Hat EBM as a user starts them: killed and gone on with its bank, outliers scored by H, converted weights."""

import json
import shutil
import signal

import numpy as np
import pytest
from test_training import assert_same_run, checkpoint_steps, command, interrupted, metrics_of

import jebm
from jebm import cli

TINY_SYNTHESIS = '''
"""A tiny synthesis."""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config():
    return Config(
        method=HatEBMConfig(
            image_size=8, channels=1, latent_size=4, energy_width=4, generator_width=4, bank_size=32,
            chain=ChainConfig(num_steps=2), test_chain=ChainConfig(num_steps=2, residual_start_scale=0.01),
        ),
        data=DataConfig(source="digits", batch_size=8),
        training=TrainingConfig(num_steps=12, log_every=2, sample_every=6, checkpoint_every=3, num_samples=5),
        evaluation=EvaluationConfig(num_samples=32, batch_size=16),
    )
'''


@pytest.fixture(scope="module")
def synthesis(tmp_path_factory):
    """(the experiment's file, the directory of a run of it that nothing stopped)."""
    folder = tmp_path_factory.mktemp("synthesis")
    (folder / "tiny.py").write_text(TINY_SYNTHESIS)
    assert cli.main(command(folder / "tiny.py", folder / "run")) == 0
    return folder / "tiny.py", folder / "run"


@pytest.mark.slow
def test_a_synthesis_killed_and_started_again(synthesis, tmp_path, capsys):
    experiment, finished = synthesis
    directory = tmp_path / "run"
    result = interrupted(experiment, directory, signal.SIGKILL)
    assert result.returncode == -signal.SIGKILL, result.stderr
    stopped = checkpoint_steps(directory)
    assert stopped in ([3], [3, 6])
    assert len(metrics_of(directory)) < 6
    assert cli.main(command(experiment, directory)) == 0
    assert "going on from step" in capsys.readouterr().out
    assert_same_run(finished, directory)  # networks, averages, optimisers, bank; metrics; pictures

    # the bank is part of it: rows of before the kill are still there, and others have been replaced since
    early = jebm.load(finished, step=6 if 6 in checkpoint_steps(finished) else 9).state.bank
    late = jebm.load(directory).state.bank
    assert late.entries["z"].shape == (32, 4)
    same = (np.asarray(early.entries["image"]) == np.asarray(late.entries["image"])).all((1, 2, 3))
    assert 0 < same.sum() < 32
    assert max(late.ages) >= 3


def test_a_hat_scores_outliers_by_its_energy(synthesis, tmp_path):
    directory = shutil.copytree(synthesis[1], tmp_path / "run")
    assert cli.main(["evaluate", str(directory), "--metrics", "ood"]) == 0
    records = [json.loads(path.read_text()) for path in (directory / "evaluation").glob("auroc_*.json")]
    assert records
    for record in records:
        assert 0 <= record["value"] <= 1
        assert (record["n"], record["protocol"]["weights"], record["protocol"]["step"]) == (297, "raw", 12)
