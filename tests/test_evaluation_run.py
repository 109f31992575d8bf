"""The measurements of a run: which weights, which space, what is left beside the records."""

import dataclasses
import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from jebm import cli, data, evaluation, methods, runs
from jebm.config import Config
from jebm.evaluation import inception
from jebm.evaluation.of_run import choose_features, with_weights


class Average(NamedTuple):
    params: str = "raw"
    average: str = "mean"
    vae: str = "raw vae"
    vae_average: str = "mean vae"


class Plain(NamedTuple):
    params: str = "raw"


@pytest.fixture
def run():
    config = Config(method=methods.ECVAEConfig())
    return runs.Run(runs.RunDirectory(None), config, None, Average(), 3, {})  # type: ignore[arg-type]


def test_raw_weights_take_the_place_of_averages(run):
    assert with_weights(run, None) == (run, "ema")
    raw, name = with_weights(run, "raw")
    assert name == "raw"
    assert raw.state == Average(average="raw", vae_average="raw vae")
    assert run.state == Average()
    plain = dataclasses.replace(run, state=Plain())
    assert with_weights(plain, None) == (plain, "raw")
    with pytest.raises(ValueError, match="keeps no moving average"):
        with_weights(plain, "ema")


def test_a_family_that_names_its_weights(run):
    config = Config(method=methods.HatAutoencoderConfig())
    hat = dataclasses.replace(run, config=config, method=runs.build(config))
    assert with_weights(hat, None)[1] == "raw"
    assert with_weights(hat, "raw")[0] is hat
    changed, name = with_weights(hat, "ema")
    assert (name, changed.config.method.weights) == ("ema", "average")
    assert changed.state == Average()


def test_without_weights_the_user_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path))
    source, said = data.resize_source(data.load("digits"), 32), []
    monkeypatch.setattr("jebm.evaluation.of_run.source_features", evaluation.random_features)
    assert choose_features(source, "auto", said.append).declaration["feature_space"] == "FD-random"
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "jebm convert inception --weights" in said[0]
    assert said[0].endswith("distances are in the space FD-random")
    choose_features(source, "substitute", said.append)
    choose_features(data.load("digits"), "auto", said.append)  # 8 pixels: these weights would not be used
    assert len(said) == 1
    with pytest.raises(ValueError, match="jebm convert inception"):
        choose_features(source, "inception", said.append)


def test_inception_is_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(inception, "installed", lambda: "somewhere")
    monkeypatch.setattr(inception, "inception_features", lambda: "inception")
    monkeypatch.setattr("jebm.evaluation.of_run.source_features", lambda source: "substitute")
    small = data.load("digits")
    large = data.resize_source(small, 32)
    for source, space, chosen in (
        (small, "auto", "substitute"), (large, "auto", "inception"), (small, "inception", "inception"),
        (large, "substitute", "substitute"),
    ):  # fmt: skip
        assert choose_features(source, space, pytest.fail) == chosen


def test_a_run_is_measured_twice_with_the_same_numbers(finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jebm.evaluation.measure.NUM_RESAMPLES", 30)
    monkeypatch.setattr("jebm.evaluation.of_run.source_features", evaluation.random_features)
    larger = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "larger.npz", x_train=larger, x_test=larger)
    values = []
    for name in ("first", "second"):
        run = shutil.copytree(finished_run, tmp_path / name)
        command = f"evaluate {run} --metrics generation,ood --num 24 --ood npz:{tmp_path}/larger.npz"
        assert cli.main(command.split()) == 0
        folder = run / "evaluation"
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        values.append({record["metric"]: record["value"] for record in records})
    assert values[0] == values[1]
    assert {"frechet_distance", "kernel_distance", "auroc_larger"} <= set(values[0])
    assert not any(name.startswith("fid") for name in values[0])
    protocol = next(record["protocol"] for record in records if record["metric"] == "frechet_distance")
    assert protocol["chains"]["calibration"]["num_steps"] == 2
    assert (protocol["n_reference"], protocol["weights"], protocol["seed"]) == (297, "ema", 0)
    # the distance comes back from the saved images
    with np.load(folder / "samples-ema-step00000012-n24.npz") as file:
        images = file["x"]
    source = data.load("digits")
    features = evaluation.random_features(source)
    again = evaluation.frechet_distance(
        *(evaluation.statistics(features.function(x)) for x in (images, source.test))
    )
    assert again == pytest.approx(values[0]["frechet_distance"], rel=1e-4)
    with np.load(folder / "ood_scores-ema-step00000012.npz") as file:
        assert evaluation.auroc(file["energy/in-for-larger"], file["energy/larger"]) == values[0]["auroc_larger"]
