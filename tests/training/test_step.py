"""The compiled step: its microbatches, and what it multiplies in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.runs import AUTOENCODER, metrics_of

from jebm.config import Config, DataConfig, TrainingConfig, override
from jebm.errors import ConfigError
from jebm.methods import build
from jebm.runs.directory import RunDirectory
from jebm.runs.run import abstract_state
from jebm.training import train
from jebm.training.step import make_step


def trained(directory, *assignments, method=AUTOENCODER):
    config = Config(
        method, DataConfig(batch_size=16),
        TrainingConfig(num_steps=3, log_every=1, sample_every=0, checkpoint_every=2, num_samples=2),
    )  # fmt: skip
    said = []
    train(override(config, assignments), RunDirectory(directory), said.append)
    return said


def test_a_run_in_microbatches_and_one_that_goes_on_with_them(tmp_path):
    trained(tmp_path / "whole")
    trained(tmp_path / "moved", "training.num_steps=1")
    said = trained(tmp_path / "moved", "training.microbatches=4")
    assert any("batch: 16 images, 8 a device, in 4 microbatches" in line for line in said)
    whole = metrics_of(tmp_path / "whole")
    assert [line["step"] for line in whole] == [1, 2, 3]
    for line, expected in zip(metrics_of(tmp_path / "moved"), whole, strict=True):
        np.testing.assert_allclose([line[key] for key in expected], list(expected.values()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "microbatches", "words"),
    [
        (toy.ToyConfig(), 2, "microbatches=2: not for this method, whose update is written for a whole batch"),
        (AUTOENCODER, 3, "data.batch_size=16 does not divide over 2 devices in 3 microbatches: take a multiple of 6"),
    ],
)
def test_microbatches_that_cannot_be_are_refused_before_anything_is_written(tmp_path, method, microbatches, words):
    with pytest.raises(ConfigError, match=words):
        trained(tmp_path / "run", f"training.microbatches={microbatches}", method=method)
    assert not (tmp_path / "run" / "config.json").exists()


def precisions(name):
    """The precisions of the step's products, as its program states them."""
    config = dataclasses.replace(
        toy.get_config(), training=dataclasses.replace(TrainingConfig(), matmul_precision=name)
    )  # fmt: skip
    method = build(config)
    batch = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8)
    text = make_step(config, method).lower(abstract_state(method, config), batch).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert lines
    return {line.partition("precision = [")[2].partition("]")[0] for line in lines}


@pytest.mark.parametrize(
    ("name", "stated"),
    [("default", "DEFAULT, DEFAULT"), ("highest", "HIGHEST, HIGHEST"), ("tensorfloat32", "HIGH, HIGH")],
)
def test_the_program_carries_the_precision_of_its_products(name, stated):
    assert precisions(name) == {stated}


def test_a_precision_that_there_is_not():
    with pytest.raises(ConfigError, match="training.matmul_precision='exact': expected "):
        override(toy.get_config(), ["training.matmul_precision=exact"])
