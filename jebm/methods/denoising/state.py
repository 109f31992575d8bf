"""The state of Denoising-EBM: its networks, the bank of chains, their initial values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods.denoising.model import DenoisingEBMConfig, initial_parameters
from jebm.methods.shared import Trained, train

__all__ = ["DenoisingEBMState", "initialize", "optimizer"]


class DenoisingEBMState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        networks: each network of `jebm.methods.denoising.model.Networks`, by its name.
        bank: ends of chains ``{"x", "level"}``, or None.
        step: int32, iterations made.
    """

    networks: dict[str, Trained]
    bank: Bank | None
    step: Array

    @property
    def params(self) -> dict[str, Any]:
        """The raw parameters of each network."""
        return {name: network.params for name, network in self.networks.items()}

    @property
    def ema(self) -> dict[str, Any]:
        """Their moving averages."""
        return {name: network.ema for name, network in self.networks.items()}


def initialize(config: DenoisingEBMConfig, key: Array, batch: Array) -> DenoisingEBMState:
    """A fresh state; ``batch`` gives the batch size."""
    params_key, bank_key = jax.random.split(key)
    params = initial_parameters(config, params_key)
    return DenoisingEBMState(
        networks={name: train(tree, optimizer(config)) for name, tree in params.items()},
        bank=_initial_bank(config, bank_key, batch.shape[0]) if config.negatives == "bank" else None,
        step=jnp.zeros((), jnp.int32),
    )


def _initial_bank(config: DenoisingEBMConfig, key: Array, batch_size: int) -> Bank:
    """Noise at every level's row: the first draws are as far from the data as a chain can start."""
    size = bank.divisible_size(config.bank_size * config.semantic_levels, batch_size)
    shape = (config.latent_size,) if config.semantic_chain == "latent" else config.image_shape
    x = jax.random.normal(key, (size, *shape))
    if config.semantic_chain == "pixel":
        x = 0.5 + config.highest_semantic * x
    return bank.init({"x": x, "level": jnp.arange(size, dtype=jnp.int32) % config.semantic_levels})


def optimizer(config: DenoisingEBMConfig) -> optax.GradientTransformation:
    """Adam behind the clip, its rate warming up; one for each network."""
    rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps) if config.warmup_steps else None
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.adam(rate or config.learning_rate, b1=config.b1)
    )
