"""Training on arrays and over functions, in one call: what comes back, what is resumed, what is refused."""

import dataclasses
import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.runs import bits, checkpoint_steps, metrics_of

import jebm
from jebm import data, energy
from jebm.commands.main import main
from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.errors import ConfigError, DataError
from jebm.methods import HatEBMConfig
from jebm.methods.hat.chains import ChainConfig
from jebm.notebook import _levels, _on
from jebm.runs.directory import RunDirectory
from jebm.runs.run import given_function
from jebm.training import train

KEY = jax.random.key(2)
IMAGES = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
CONFIG = Config(
    toy.ToyConfig(), DataConfig(batch_size=8),
    TrainingConfig(num_steps=4, log_every=1, sample_every=0, checkpoint_every=2),
)  # fmt: skip


def silent(line):
    """No line for the user."""


def test_an_array_is_trained_on_as_a_file_of_it_is_from_the_command_line(tmp_path):
    run = jebm.fit(CONFIG, IMAGES, tmp_path / "array", log=silent)
    assert (run.step, run.directory.path) == (4, tmp_path / "array")
    np.savez(tmp_path / "x.npz", x=IMAGES)
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source=f"npz:{tmp_path / 'x.npz'}"))
    train(config, RunDirectory(tmp_path / "file"), silent)
    assert bits(jebm.load(tmp_path / "file").state) == bits(run.state)
    assert metrics_of(tmp_path / "file") == metrics_of(tmp_path / "array")
    assert (tmp_path / "array/report.html").is_file()

    # the same call resumes; other images are refused
    longer = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, num_steps=6))
    assert jebm.fit(longer, IMAGES, tmp_path / "array", log=silent).step == 6
    with pytest.raises(ConfigError, match="array holds a run on other images"):
        jebm.fit(longer, IMAGES[::-1], tmp_path / "array", log=silent)


def test_an_interrupt_saves_and_the_same_call_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    whole = jebm.fit(CONFIG, IMAGES, log=silent)  # in a folder of its own
    batch = data.Loader.batch

    def interrupted(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(data.Loader, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same call with this workdir resumes"):
            jebm.fit(CONFIG, IMAGES, tmp_path / "run", log=silent)
    assert max(checkpoint_steps(tmp_path / "run")) < 4
    assert bits(jebm.fit(CONFIG, IMAGES, tmp_path / "run", log=silent).state) == bits(whole.state)
    assert whole.directory.path.name.startswith("jebm-")


def source_of(given, folder):
    return _on(CONFIG, given, RunDirectory(folder)).data.source


def test_what_data_may_be(tmp_path):
    assert source_of("digits", tmp_path) == "digits"
    np.savez(tmp_path / "x.npz", x=IMAGES)
    for path in (tmp_path / "x.npz", str(tmp_path / "x.npz")):
        assert source_of(path, tmp_path) == f"npz:{tmp_path / 'x.npz'}"
    (tmp_path / "pictures").mkdir()
    assert source_of(tmp_path / "pictures", tmp_path) == f"folder:{tmp_path / 'pictures'}"
    assert source_of("points:rings", tmp_path) == "points:rings"
    with pytest.raises(DataError, match="'rings' is a set of points: give the name, 'points:rings'"):
        source_of(data.load("points:rings"), tmp_path)
    with pytest.raises(ConfigError, match="no data source 'digitz'"):
        source_of("digitz", tmp_path)

    digits = data.load("digits")
    again = data.load(source_of(digits, tmp_path / "source"))
    for name in ("train", "test", "train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(digits, name))

    floats = np.asarray(data.to_float(IMAGES))
    np.testing.assert_array_equal(_levels(floats), IMAGES)
    np.testing.assert_array_equal(_levels(jnp.asarray(floats)[..., 0]), IMAGES)
    kept = data.load(source_of(floats, tmp_path / "floats"))
    assert sorted(map(bytes, [*kept.train, *kept.test])) == sorted(map(bytes, IMAGES))
    assert len(kept.test) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (IMAGES / 255, "pass 2 \\* data - 1"),
        (IMAGES.astype(float), "data run from 0 to 255"),
        (np.full((2, 8, 8), np.nan), "not finite"),
        (IMAGES.astype(int), "data are int64"),
        (IMAGES[0, :, :, 0], r"data have shape \(8, 8\)"),
        (np.zeros((2, 8, 8, 5)), r"data have shape \(2, 8, 8, 5\)"),
    ],
)
def test_what_are_no_images_is_refused_in_one_line(given, words, tmp_path):
    with pytest.raises(DataError, match=words) as error:
        jebm.fit(CONFIG, given, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# --- over a function ----------------------------------------------------------------------------------------------

HAT = Config(
    HatEBMConfig(
        "refinement", image_size=8, channels=1, latent_size=4, generator="given", energy_width=4, temperature=1e-4,
        chain=ChainConfig(2, latent_noise_scale=1e-2), test_chain=ChainConfig(2, latent_noise_scale=1e-2),
    ),
    DataConfig(batch_size=4), TrainingConfig(num_steps=2, log_every=1, sample_every=0),
    EvaluationConfig(num_samples=8, batch_size=8),
)  # fmt: skip


def decode(weights, z):
    return jnp.tanh(weights @ z).reshape(8, 8, 1)


def test_a_hat_over_a_function_is_saved_loaded_and_scored(tmp_path, capsys):
    weights = jax.random.normal(KEY, (64, 4))
    generator = energy.bind(decode, weights)
    run = jebm.refine(generator, IMAGES, HAT, tmp_path / "hat", log=silent)
    z = jnp.arange(4.0)
    np.testing.assert_allclose(run.generator(z), generator(z), rtol=1e-6)
    images = run.generate(KEY, 2)
    assert images.shape == (2, 8, 8, 1)

    # its weights are those of the checkpoint, whatever the function that is given again holds
    loaded = jebm.load(tmp_path / "hat", generator=energy.bind(decode, jnp.zeros((64, 4))))
    assert bits(loaded.state) == bits(run.state)
    np.testing.assert_allclose(loaded.generator(z), generator(z), rtol=1e-6)
    np.testing.assert_allclose(loaded.generate(KEY, 2), images, atol=1e-5)
    names = {record.metric for record in jebm.evaluate(loaded, metrics=("scores",))}
    assert "score_energy_gap" in names
    assert len(list((tmp_path / "hat/evaluation").glob("*.json"))) == len(names)

    # without the function no run, in one line; the report is made of files
    with pytest.raises(ConfigError, match=r"jebm.load\(path, generator=generator\)") as error:
        jebm.load(tmp_path / "hat")
    assert "\n" not in str(error.value)
    assert main(["sample", str(tmp_path / "hat"), "--num", "1", "--out", str(tmp_path / "x.npz")]) == 2
    capsys.readouterr()
    assert main(["report", str(tmp_path / "hat")]) == 0

    # resumed over other weights: another run
    longer = dataclasses.replace(HAT, training=dataclasses.replace(HAT.training, num_steps=3))
    with pytest.raises(ConfigError, match=r"the frozen generator \(method.generator\) changed since"):
        jebm.refine(energy.bind(decode, weights + 0.3), IMAGES, longer, tmp_path / "hat", log=silent)
    assert jebm.refine(generator, IMAGES, longer, tmp_path / "hat", log=silent).step == 3
    assert json.loads((tmp_path / "hat/config.json").read_text())["method"]["generator"] == "given"


def test_another_closure_is_another_generator():
    """A resumed training is over the function that it began with, however that one holds its weights."""

    def mark(weights):
        return given_function(HAT, lambda z: decode(weights, z)).fingerprint

    weights = jax.random.normal(KEY, (64, 4))
    assert mark(weights) == mark(jnp.array(weights))
    assert mark(weights) != mark(weights + 0.3)
    bound = [given_function(HAT, energy.bind(decode, a)).fingerprint for a in (weights, weights + 0.3)]
    assert bound[0] != bound[1]


def test_a_function_where_none_is_taken(tmp_path):
    with pytest.raises(ConfigError, match="refine needs a configuration of HatEBMConfig with generator='given', got"):
        jebm.refine(decode, IMAGES, CONFIG, tmp_path / "run")
    with pytest.raises(ConfigError, match="a generator is given, which is for a HatEBMConfig"):
        train(CONFIG, RunDirectory(tmp_path / "run"), silent, generator=decode)
    with pytest.raises(ConfigError, match=r"train with jebm.refine\(generator, data, config\)"):
        jebm.fit(HAT, IMAGES, tmp_path / "run")
    other = dataclasses.replace(HAT, method=dataclasses.replace(HAT.method, latent_size=5))
    with pytest.raises(ConfigError, match="the generator does not take latents of shape"):
        jebm.refine(energy.bind(decode, jnp.ones((64, 4))), IMAGES, other, tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run/config.json").exists()
