"""The measurements of a run: which weights, which space, what is left beside the records."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import families as tiny_families
from helpers import toy as toy_family

from jebm import data, evaluation, methods
from jebm.commands.main import main
from jebm.config import Config
from jebm.errors import ConfigError
from jebm.evaluation.run import choose_features, run_weights
from jebm.methods.shared import Trained
from jebm.metrics import inception
from jebm.runs import run as runs
from jebm.runs.directory import RunDirectory


def a_run(config, state=None):
    config = Config(method=config)
    return runs.Run(RunDirectory(None), config, methods.build(config), state, 3, {})  # type: ignore[arg-type]


def moved(state, field):
    """The state with this field of each network that learns moved."""
    is_trained = lambda node: isinstance(node, Trained)  # noqa: E731

    def move(node):
        if not is_trained(node) or getattr(node, field) is None:
            return node
        return node._replace(**{field: tiny_families.away_from_the_start(getattr(node, field))})

    return jax.tree.map(move, state, is_leaf=is_trained)


def test_every_family_is_looked_at():
    assert set(tiny_families.CONFIGS) == set(methods.FAMILIES) - {"toy"}


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_raw_weights_or_their_average(name):
    """Averages differ from raw weights; then the raw ones move, then the averages; of other networks both stay."""
    run = a_run(tiny_families.CONFIGS[name])
    start = moved(jax.jit(run.method.init)(jax.random.key(0), tiny_families.IMAGES), "ema")
    # a network without an average (the energy of a calibrated generator) has its raw weights in both looks
    kept = lambda state: jax.tree.map(  # noqa: E731
        lambda new, old: old if isinstance(old, Trained) and old.ema is None else new,
        moved(state, "params"), state, is_leaf=lambda node: isinstance(node, Trained),
    )  # fmt: skip

    def looks(weights):
        @jax.jit
        def look(state):
            chosen, used = run_weights(dataclasses.replace(run, state=state), weights)
            assert used == (weights or run.method.weights)
            images = run.method.generate(jax.random.key(1), chosen, 2)
            return images, jax.vmap(run.method.energy(chosen))(tiny_families.IMAGES[:2])

        return [look(state) for state in (start, kept(start), moved(start, "ema"))]

    different = lambda a, b: max(float(jnp.abs(x - y).max()) for x, y in zip(a, b, strict=True)) > 1e-6  # noqa: E731
    for weights in ("raw", "ema", None):
        at_start, raw, average = looks(weights)
        assert different(at_start, raw) == ((weights or run.method.weights) == "raw")
        assert different(at_start, average) == ((weights or run.method.weights) == "ema")


def test_which_weights_are_meant_if_none_are_named():
    def of(config):
        return a_run(config, jax.eval_shape(methods.build(config).init, jax.random.key(0), tiny_families.IMAGES))

    assert run_weights(of(tiny_families.CONFIGS["ec_vae"]))[1] == "ema"
    assert run_weights(of(tiny_families.CONFIGS["hat_autoencoder"]))[1] == "raw"
    plain = dataclasses.replace(of(toy_family.ToyConfig()), state={"a": jnp.zeros(2)})
    assert run_weights(plain) == run_weights(plain, "raw") == (plain.state, "raw")
    with pytest.raises(ConfigError, match="keeps no moving average"):
        run_weights(plain, "ema")


def test_without_weights_the_user_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path))
    source, said = data.resize_source(data.load("digits"), 32), []
    monkeypatch.setattr("jebm.evaluation.run.source_features", evaluation.random_features)
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
    monkeypatch.setattr("jebm.evaluation.run.installed", lambda: "somewhere")
    monkeypatch.setattr(inception, "inception_features", lambda: "inception")
    monkeypatch.setattr("jebm.evaluation.run.source_features", lambda source: "substitute")
    small = data.load("digits")
    large = data.resize_source(small, 32)
    for source, space, chosen in (
        (small, "auto", "substitute"), (large, "auto", "inception"), (small, "inception", "inception"),
        (large, "substitute", "substitute"),
    ):  # fmt: skip
        assert choose_features(source, space, pytest.fail) == chosen


def test_a_run_is_measured_twice_with_the_same_numbers(finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jebm.evaluation.run.source_features", evaluation.random_features)
    larger = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "larger.npz", x_train=larger, x_test=larger)
    values = []
    for name in ("first", "second"):
        run = shutil.copytree(finished_run, tmp_path / name)
        command = f"evaluate {run} --metrics generation,ood --num 24 --ood npz:{tmp_path}/larger.npz"
        assert main(command.split()) == 0
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
    again = evaluation.frechet_distance(*(evaluation.statistics(features.function(x)) for x in (images, source.test)))
    assert again == pytest.approx(values[0]["frechet_distance"], rel=1e-4)
    with np.load(folder / "ood_scores-ema-step00000012.npz") as file:
        assert evaluation.auroc(file["energy/in-for-larger"], file["energy/larger"]) == values[0]["auroc_larger"]
