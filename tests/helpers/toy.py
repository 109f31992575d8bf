"""A family that compiles in a second: a Gaussian with a few hidden units, and persistent chains in a bank.

It has what the trainer must carry through every fault: parameters large enough to be split, an optimiser, a bank, keys.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jebm import energy, mcmc, methods
from jebm.config import Config, DataConfig, TrainingConfig
from jebm.errors import check
from jebm.mcmc import bank
from jebm.methods import diagnostics
from jebm.methods.base import Chain, Method, Summary
from jebm.methods.shared import Trained, descend, prior_samples, train

HIDDEN = 1024  # 64 x 1024 weights: the smallest array that is split over the fsdp axis


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    learning_rate: float = 0.02
    step_size: float = 0.1
    num_steps: int = 5
    energy_regularization: float = 0.0
    image_shape: ClassVar[tuple[int, int, int]] = (8, 8, 1)
    BACK_OFF: ClassVar[dict[str, tuple[str, ...]]] = {
        name: (name,) for name in ("learning_rate", "step_size", "energy_regularization")
    }

    SUMMARY: ClassVar[Summary] = Summary(
        name="Toy", paper="", progress=("mismatch", "energy_gap", "chain_displacement"),
        curves={"mismatch": "Distance of the means.", **diagnostics.CURVES},
    )  # fmt: skip

    def __post_init__(self):
        check(self, learning_rate=">0", step_size=">0", num_steps=">=1", energy_regularization=">=0")


class ToyState(NamedTuple):
    network: Trained
    bank: bank.Bank


def energy_of(params, x):
    """``½ e^a ‖x - m‖² + mean log cosh(W x)``."""
    difference = x - params["mean"]
    hidden = x.reshape(-1) @ params["weights"]
    return 0.5 * jnp.exp(params["log_precision"]) * jnp.sum(difference**2) + jnp.mean(jnp.log(jnp.cosh(hidden)))


def build(config):
    optimizer = optax.adam(config.learning_rate, b1=0.5)
    energies = lambda params, x: jax.vmap(lambda one: energy_of(params, one))(x)  # noqa: E731

    def init(key, batch):
        weights_key, bank_key = jax.random.split(key)
        weights = 0.3 * jax.random.normal(weights_key, (64, HIDDEN))
        params = {"mean": jnp.ones(config.image_shape), "log_precision": jnp.zeros(()), "weights": weights}
        entries = {"x": jax.random.normal(bank_key, (32, *config.image_shape))}
        return ToyState(train(params, optimizer), bank.init(entries))

    def update(key, state, batch):
        draw_key, chain_key = jax.random.split(key)
        indices, rows = bank.draw(draw_key, state.bank, batch.shape[0])
        bound = energy.bind(energy_of, state.network.params)
        kernel = mcmc.langevin(bound, config.step_size)
        chain = lambda key, x: mcmc.sample(key, kernel, x, config.num_steps, trace=())[0].position  # noqa: E731
        ends = jax.vmap(chain)(mcmc.chain_keys(chain_key, batch.shape[0]), rows["x"])

        def loss(params):
            data, negative = jnp.mean(energies(params, batch)), jnp.mean(energies(params, ends))
            return data - negative + config.energy_regularization * (data**2 + negative**2), (data, negative)

        gradients, (data, negative) = jax.grad(loss, has_aux=True)(state.network.params)
        mean = state.network.params["mean"]
        metrics = {
            "energy_data": data, "energy_negative": negative, "energy_gradient_norm": optax.tree.norm(gradients),
            "mismatch": jnp.sqrt(jnp.mean((mean - jnp.mean(batch, axis=0)) ** 2)),
        }  # fmt: skip
        metrics |= diagnostics.displacement(rows["x"], ends) | diagnostics.gradient_norms(bound, batch, ends)
        network = descend(state.network, gradients, optimizer, ema_decay=0.5)
        return ToyState(network, bank.replace(state.bank, indices, {"x": ends})), metrics

    def generator(state):
        return energy.bind(generated, state.network.ema)

    return Method(
        image_shape=config.image_shape, init=init, update=update,
        generate=lambda key, state, n: jax.vmap(generator(state))(prior_samples(key, n, config.image_shape)),
        energy=lambda state: energy.bind(energy_of, state.network.ema), scores=lambda key, state, batch: {},
        networks=lambda state: {"energy": state.network}, generator=generator, latent_shape=config.image_shape,
        chain=Chain(config.num_steps, config.step_size),
    )  # fmt: skip


def generated(params, z):
    return params["mean"] + jnp.exp(-0.5 * params["log_precision"]) * z


methods.FAMILIES["toy"] = (ToyConfig, build)


def get_config():
    return Config(
        method=ToyConfig(),
        data=DataConfig(source="digits", batch_size=16),
        training=TrainingConfig(num_steps=12, log_every=1, sample_every=0, checkpoint_every=3),
    )
