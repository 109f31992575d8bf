"""A generator from another run: an EC-VAE's decoder, an autoencoder's; a run keeps it whole, and its weights stay."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from helpers.runs import AUTOENCODER, VAE, bits, fresh_run

import jebm
from jebm.config import Config, DataConfig, RecoveryConfig, TrainingConfig
from jebm.errors import ConfigError
from jebm.methods import ChainConfig, HatEBMConfig
from jebm.runs import run as runs
from jebm.runs import samples
from jebm.runs.directory import RunDirectory
from jebm.training import loop, train

STILL = ChainConfig(num_steps=0, latent_noise_scale=1e-2)
MOVING = ChainConfig(num_steps=2, latent_noise_scale=1e-2)


def hat_over(generator, chain=STILL, application="retrofit"):
    return HatEBMConfig(
        application=application, generator=str(generator), image_size=8, channels=1, latent_size=4, energy_width=4,
        temperature=1e-3, chain=chain, test_chain=chain,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "application", "latent"),
    [
        pytest.param(VAE, "refinement", (4,), id="ec_vae"),
        pytest.param(AUTOENCODER, "retrofit", (4, 4, 1), id="autoencoder", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_hat_over_the_generator_of_a_run(tmp_path, key, method, application, latent):
    base = fresh_run(tmp_path / "base", method)
    run = fresh_run(tmp_path / "hat", hat_over(tmp_path / "base", application=application))
    keys = jebm.chain_keys(jax.random.split(key)[0], 3)
    z = jax.vmap(lambda k: jax.random.normal(jax.random.split(k)[0], latent))(keys)
    expected = jax.jit(jax.vmap(runs.generator_of(base)))(z)
    images = jax.jit(run.method.generate, static_argnums=2)(key, run.state, 3)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(runs.generator_of(run)))(z), expected, atol=1e-5)
    assert np.std(expected) > 0.01

    # the weights are in the hat's own checkpoint: another base of that name changes nothing
    (tmp_path / "base").rename(tmp_path / "old")
    fresh_run(tmp_path / "base", method, seed=1)
    again = jebm.load(tmp_path / "hat")
    np.testing.assert_array_equal(jax.jit(again.method.generate, static_argnums=2)(key, again.state, 3), images)
    # and so does another architecture, or none
    shutil.rmtree(tmp_path / "base")
    if application == "retrofit":
        fresh_run(tmp_path / "base", dataclasses.replace(method, width=8, output_scale=1.0))
    again = jebm.load(tmp_path / "hat")
    np.testing.assert_array_equal(jax.jit(again.method.generate, static_argnums=2)(key, again.state, 3), images)


def experiment(generator, num_steps):
    training = TrainingConfig(
        num_steps=num_steps, log_every=1, sample_every=0, checkpoint_every=2, num_samples=2, keep_checkpoints=9,
        recovery=RecoveryConfig(step_size_factor=0.5),
    )  # fmt: skip
    return Config(hat_over(generator, MOVING), DataConfig(batch_size=4), training)


@pytest.fixture(scope="module")
def stopped_hat(tmp_path_factory):
    """A folder with a base, and a hat over it at step 2 of 4; to be copied."""
    folder = tmp_path_factory.mktemp("hats")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fresh_run(folder / "base", AUTOENCODER)
        train(experiment("base", 2), RunDirectory(folder / "hat"), lambda line: None)
    return folder


@pytest.fixture
def folder(stopped_hat, tmp_path, monkeypatch):
    shutil.copytree(stopped_hat, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_run_is_whole_without_the_run_of_its_generator(folder, key):
    """Deleted, the other run is missed by nothing: loading, sampling and resuming give the same bits."""
    shutil.copytree("hat", "whole")
    train(experiment("base", 4), RunDirectory(folder / "whole"), lambda line: None)
    before = jebm.load("hat")
    images = jax.jit(before.method.generate, static_argnums=2)(key, before.state, 3)
    shutil.rmtree("base")

    run = jebm.load("hat")
    assert bits(run.state) == bits(before.state)
    np.testing.assert_array_equal(jax.jit(run.method.generate, static_argnums=2)(key, run.state, 3), images)
    fresh = run.method.init(key, np.zeros((4, 8, 8, 1), np.float32))
    assert bits(fresh.generator) == bits(run.state.generator)  # its weights, not their shapes
    samples.draw_to(folder / "samples.npz", run, 2)
    assert np.load(folder / "samples.npz")["x"].shape == (2, 8, 8, 1)
    said = []
    train(experiment("base", 4), RunDirectory(folder / "hat"), said.append)
    assert "resuming from step 2" in said
    assert any("the weights kept here are used" in line for line in said)
    assert bits(jebm.load("hat").state) == bits(jebm.load("whole").state)
    # what it was trained on is still known
    assert jebm.load("hat").meta["generator_fingerprint"] == before.meta["generator_fingerprint"]


def test_a_changed_generator_is_refused_at_resume_and_never_used(folder):
    frozen = bits(jebm.load("hat").state.generator)
    for changed in (AUTOENCODER, dataclasses.replace(AUTOENCODER, output_scale=1.0)):
        shutil.rmtree("base")
        fresh_run(folder / "base", changed, seed=1)
        with pytest.raises(ConfigError, match=r"the frozen generator \(method.generator\) changed since"):
            train(experiment("base", 4), RunDirectory(folder / "hat"), lambda line: None)
    train(experiment("base", 4), RunDirectory(folder / "hat"), lambda line: None, allow_changed_data=True)
    assert bits(jebm.load("hat").state.generator) == frozen
    assert RunDirectory(folder / "hat").read_generator()[0][0].method == AUTOENCODER


def test_a_fresh_start_needs_the_weights(folder):
    shutil.rmtree("base")
    shutil.rmtree("hat/checkpoints")
    with pytest.raises(ConfigError, match="method.generator: its run is gone, or has another architecture"):
        train(experiment("base", 4), RunDirectory(folder / "hat"), lambda line: None)
    with pytest.raises(ConfigError, match="method.generator=base: base is no run directory"):
        train(experiment("base", 4), RunDirectory(folder / "new"), lambda line: None)


def test_a_damaged_description_of_the_generator_is_named(folder):
    (folder / "hat/generator.json").write_text('{"fingerprint": "f"}')
    with pytest.raises(ConfigError, match=r"generator.json cannot be read: "):
        jebm.load("hat")


def test_a_training_loads_its_generator_once(folder, monkeypatch):
    loaded, load = [], runs.load
    monkeypatch.setattr(runs, "load", lambda path: loaded.append(str(path)) or load(path))
    diagnoses, diagnose, built, build = iter(["planted"]), loop.recovery.diagnose, [], runs.build
    monkeypatch.setattr(loop.recovery, "diagnose", lambda *given: next(diagnoses, None) or diagnose(*given))
    monkeypatch.setattr(
        runs, "build", lambda config, generator: built.append(config.method) or build(config, generator)
    )
    said = []
    train(experiment("base", 4), RunDirectory(folder / "hat"), said.append)
    assert said[-2] == "step 3: planted; attempt 1 of 8 resumes from step 2"
    assert loaded == ["base"]
    first, second = built  # once an attempt; the second one's chains take smaller steps
    assert second.chain.noise_scale == 0.5 * first.chain.noise_scale > 0
    assert second.chain.latent_noise_scale == 0.5 * first.chain.latent_noise_scale > 0


def test_a_hat_over_the_generator_of_a_hat_is_whole_alone(folder, key):
    """The generator of a retrofit is that of its base: configurations are kept down to the last one."""
    run = fresh_run(folder / "second", hat_over("hat"))
    images = jax.jit(run.method.generate, static_argnums=2)(key, run.state, 2)
    shutil.rmtree("base")
    shutil.rmtree("hat")
    again = jebm.load("second")
    np.testing.assert_array_equal(jax.jit(again.method.generate, static_argnums=2)(key, again.state, 2), images)


def test_a_run_that_is_not_there_is_named(tmp_path):
    settings = hat_over(tmp_path / "no")
    with pytest.raises(ConfigError, match=r"method.generator=.*no: .*is no run directory"):
        runs.build(Config(settings))
    with pytest.raises(ConfigError, match="give the generator of that run"):
        jebm.methods.build(Config(settings))
