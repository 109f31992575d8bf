"""Runs as a user starts them, and what they leave behind."""

import dataclasses
import json

import jax
import numpy as np

import jebm
from jebm.config import Config, DataConfig
from jebm.methods import ECVAEConfig, HatAutoencoderConfig
from jebm.runs import run as runs
from jebm.runs.directory import RunDirectory
from jebm.runs.state import initial_state
from jebm.training import Checkpoints


def command(experiment, directory, *assignments):
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    return ["train", str(experiment), "--workdir", str(directory), *sets]


def metrics_of(directory):
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "time" not in k and "per_second" not in k} for line in lines]


def bits(tree):
    leaves = [jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a
              for a in jax.tree.leaves(tree)]  # fmt: skip
    return [(np.asarray(a).shape, np.asarray(a).tobytes()) for a in leaves]


def checkpoint_steps(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())


VAE = ECVAEConfig(
    image_size=8, channels=1, latent_size=4, encoder_width=4, decoder_width=2, energy_layers=((4, 1),),
    energy_head_width=4, energy_scales=1, spectral_norm=False,
)  # fmt: skip


AUTOENCODER = HatAutoencoderConfig(image_size=8, channels=1, width=4)


def fresh_run(path, method, seed=0):
    """A run directory with a checkpoint of step 0."""
    config = Config(method, DataConfig(batch_size=2))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    directory = RunDirectory(path)
    directory.write_config(config)
    batch = np.zeros((2, 8, 8, 1), np.float32)
    checkpoints = Checkpoints(directory.checkpoints, 1)
    frozen = runs.frozen_generator(config)
    if frozen is not None:
        directory.write_generator(frozen.configs, frozen.fingerprint)
    built = runs.build(config, frozen and frozen.generator)
    checkpoints.save(jax.jit(lambda seed, b: initial_state(built, seed, b))(seed, batch), {})
    checkpoints.close()
    return jebm.load(path)
