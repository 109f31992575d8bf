"""Every family as a user runs it: trained, killed, resumed, sampled, scored, restored, reported."""

import json

import numpy as np
import pytest
from helpers import toy  # noqa: F401  # its row
from helpers.runs import AUTOENCODER, VAE, bits, checkpoint_steps, command, fresh_run, metrics_of

import jebm
from jebm import data, evaluation, restoration
from jebm.commands import common, report
from jebm.commands.main import main
from jebm.methods import FAMILIES
from jebm.training import attempt

RUN = '''
"""A tiny run of one family."""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import *
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from helpers.toy import ToyConfig  # a family that is not the library's

small = {"image_size": 8, "channels": 1}
energy = {"energy_layers": ((4, 1),), "calibration": CalibrationConfig(num_steps=2)}
joint = {"energy_width": 4, "chain": ChainConfig(2, latent_noise_scale=1e-2), "temperature": 1e-4,
         "test_chain": ChainConfig(2, latent_noise_scale=1e-2)}


def get_config():
    return Config(
        method=METHOD,
        data=DataConfig(source="npz:DIGITS", batch_size=8),
        training=TrainingConfig(num_steps=4, log_every=1, sample_every=0, checkpoint_every=2),
        evaluation=EvaluationConfig(num_samples=20, batch_size=20),
    )
'''

METHODS = {
    "ebm": """EBMConfig(
        **small, width=4, num_halvings=2, num_steps=2, generate_steps=2, bank_size=32, learning_rate=1e-2)""",
    "ec_vae": """ECVAEConfig(
        **small, **energy, latent_size=4, encoder_width=2, decoder_width=2, energy_head_width=4, energy_scales=1,
        vae_learning_rate=1e-2)""",
    "ec_flow": "ECFlowConfig(**small, **energy, num_scales=1, num_steps=2, width=4, energy_head_width=4)",
    "ec_gan": """ECGANConfig(
        **small, **energy, latent_size=4, generator_width=2, discriminator_layers=((4, 1),), head_width=4,
        learning_rate=1e-2)""",
    "hat_synthesis": """HatEBMConfig(
        **small, latent_size=4, energy_width=4, generator_width=4, bank_size=32, chain=ChainConfig(2),
        test_chain=ChainConfig(2, residual_start_scale=0.01), generator_learning_rate=((1e-2, 0),))""",
    "hat_refinement": 'HatEBMConfig("refinement", **small, **joint, latent_size=4, generator="BASE")',
    "hat_retrofit": 'HatEBMConfig("retrofit", **small, **joint, generator="BASE")',
    "hat_autoencoder": "HatAutoencoderConfig(**small, width=4, learning_rate=((1e-2, 0),))",
    "denoising_ebm": """DenoisingEBMConfig(
        **small, width=4, multipliers=(1,), num_blocks=1, latent_size=4, latent_width=4, head_outputs=3, head_width=4,
        chain=SemanticChainConfig(2), semantic_levels=3, negatives="bank", bank_size=8, learning_rate=1e-2,
        warmup_steps=0, refinement=RefinementConfig(num_levels=2, steps_per_level=2))""",
    "energy_matching": """EnergyMatchingConfig(
        **small, width=4, num_halvings=2, head_width=4, warmup_steps=2, step_size=0.6, num_steps=2, generate_steps=2,
        contrastive_weight=0.1, learning_rate=1e-2)""",
    "toy": "ToyConfig(learning_rate=0.05)",
}
BASES = {"hat_refinement": VAE, "hat_retrofit": AUTOENCODER}


class Killed(BaseException):
    """What no handler expects: the process is gone."""


def test_there_is_a_run_of_every_family():
    families = {name if name in FAMILIES else name.partition("_")[0] + "_ebm" for name in METHODS}
    assert families == set(FAMILIES)


@pytest.fixture(autouse=True)
def _cheap(tmp_path, monkeypatch):
    """Less of what says nothing of a family: features, resamples, chains of restoration, one program for three runs."""
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jebm.evaluation.run.source_features", evaluation.random_features)
    config, make_step, made = restoration.RestorationConfig, attempt.make_step, []
    few = {"descent_steps": 2, "num_steps": 2, "step_size": 1e-3}
    cheap = lambda **given: config(**{**given, **few})  # noqa: E731
    monkeypatch.setattr(restoration, "RestorationConfig", cheap)
    once = lambda *given: made[0] if made else made.append(make_step(*given)) or made[0]  # noqa: E731
    monkeypatch.setattr(attempt, "make_step", once)


# the longest to compile; what is theirs alone is in test_generator_runs and test_denoising_runs, too
LONG = {"hat_refinement", "hat_retrofit", "denoising_ebm"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in METHODS])
def test_a_life(name, tmp_path, monkeypatch, capsys):
    digits = data.load("digits")
    np.savez(tmp_path / "digits.npz", x_train=digits.train[:40], x_test=digits.test[:20])
    if name in BASES:
        fresh_run(tmp_path / "base", BASES[name])
    text = RUN.replace("METHOD", METHODS[name]).replace("BASE", str(tmp_path / "base"))
    experiment, whole, run = tmp_path / "tiny.py", tmp_path / "whole", tmp_path / "run"
    experiment.write_text(text.replace("DIGITS", str(tmp_path / "digits.npz")))
    write_report = report.write
    monkeypatch.setattr(report, "write", lambda directory: None)  # once, at the end
    assert main(command(experiment, whole)) == 0
    assert [line["step"] for line in metrics_of(whole)] == [1, 2, 3, 4]

    # killed before its third step, and resumed
    batch = data.Loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(data.Loader, "batch", lambda self, step: killed() if step == 3 else batch(self, step))
        with pytest.raises(Killed):
            main(command(experiment, run))
    assert checkpoint_steps(run) == [2]
    assert main(command(experiment, run)) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert metrics_of(whole) == metrics_of(run)
    loaded = jebm.load(run)
    assert bits(jebm.load(whole).state) == bits(loaded.state)
    monkeypatch.setattr(common, "load", lambda path, step=None: loaded)
    if (rows := getattr(loaded.state, "bank", None)) is not None:  # part of it: some rows are older than the break
        assert rows.ages.max() == metrics_of(run)[-1]["bank_age_max"] == 4

    # samples
    assert main(["sample", str(run), "--num", "3", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as file:
        samples = file["x"]
    assert (samples.shape, samples.dtype) == ((3, 8, 8, 1), np.uint8)
    assert len({image.tobytes() for image in samples}) == 3

    # scores, with raw and with averaged weights
    values = {}
    second = "generation" if name == "toy" else "reconstruction,scores"  # the toy has no scores of its own
    for weights, metrics in {"raw": "generation,reconstruction,scores,ood", "ema": second}.items():
        assert main(["evaluate", str(run), "--metrics", metrics, "--weights", weights]) == 0
        files = (run / "evaluation").glob(f"*-{weights}-step00000004-n*.json")
        records = [json.loads(path.read_text()) for path in files]
        values[weights] = {record["metric"]: record["value"] for record in records}
        assert {(record["protocol"]["weights"], record["n"]) for record in records} == {(weights, 20)}
    assert {"frechet_distance", "auroc_constant"} <= set(values["raw"])
    assert ("reconstruction_error" in values["raw"]) == (loaded.method.reconstruct is not None)
    assert all(np.isfinite(value) for value in values["raw"].values())
    assert any(value != values["raw"][metric] for metric, value in values["ema"].items())

    # a restored image
    image = digits.test[:1]
    np.savez(tmp_path / "damaged.npz", x=image)
    words = ["--task", "inpaint", "--input", str(tmp_path / "damaged.npz"), "--restarts", "1"]
    if loaded.method.generator is None:  # restored by the energy alone
        words += ["--refinement-steps", "2"]
    assert main(["restore", str(run), *words, "--out", str(tmp_path / "restored.npz")]) == 0
    with np.load(tmp_path / "restored.npz") as file:
        hole = np.pad(np.ones((4, 4), bool), 2)
        np.testing.assert_array_equal(file["x"][:, ~hole], image[:, ~hole])
        assert (file["x"][:, hole] != image[:, hole]).any()

    # and a page of it all
    monkeypatch.setattr(report, "write", write_report)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for text in ("step 4 of 4", "Fréchet distance", "data:image/png;base64,", "<svg "):
        assert text in page
    still = "No film (step 4" in page  # a tiny energy moves nothing that an eye sees
    assert ("data:image/gif;base64," in page) == (loaded.method.chain is not None and not still)
    assert ("<h2>Reconstructions</h2>" in page) == (loaded.method.reconstruct is not None)
    assert ("<h2>Between latents</h2>" in page) == (loaded.method.generator is not None)


def killed():
    raise Killed
