"""The compiled training step of any `Method`."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import data, sharding
from jebm.config import Config
from jebm.methods import accumulation
from jebm.methods.base import Method, Metrics
from jebm.methods.shared import gathered
from jebm.runs.state import TrainState
from jebm.training import monitors

__all__ = ["make_step", "multiplying"]


def make_step(
    config: Config, method: Method, placement: Any = None, probe: np.ndarray | None = None
) -> jax.stages.Wrapped:
    """The compiled training step ``(state, uint8 images) -> (state, metrics)``; it donates the old state.

    ``placement``, a tree of shardings, keeps the new state on the devices of the old one. With ``probe``, a few uint8
    images, the metrics include the monitors (`jebm.training.monitors`).

    Raises:
        ConfigError: ``training.microbatches`` of a method that takes none.
    """
    update = accumulation.update_of(method, config.training.microbatches)

    def step(state: TrainState, batch: Array) -> tuple[TrainState, Metrics]:
        data_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = data.preprocess(data_key, batch, horizontal_flip=config.data.flip, dequantize=config.data.dequantize)
        before = gathered(state.method)
        with multiplying(config):
            method_state, metrics = update(update_key, before, batch)
            if probe is not None:
                watched = data.to_float(jnp.asarray(probe))
                metrics = monitors.measure(method, before, method_state, metrics, watched)
        return TrainState(state.step + 1, state.key, method_state), metrics

    shardings = None
    if placement is not None:
        shardings = (placement, sharding.replicated(jax.tree.leaves(placement)[0].mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def multiplying(config: Config) -> contextlib.AbstractContextManager[None]:
    """``training.matmul_precision`` within; "default" leaves it to JAX and its environment variable."""
    name = config.training.matmul_precision
    return contextlib.nullcontext() if name == "default" else jax.default_matmul_precision(name)
