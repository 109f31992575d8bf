"""A plain energy-based model: one network f, density ``exp(-f(x)/T)``, and one of the rules of `jebm.learning`.

Chains walk f at temperature T, ``x' = x - η ∇f(x) + sqrt(2ηT) ξ``, from starts ``x ~ N(0, s² I)`` in short runs, in
fresh rows of the bank, and in generation; the same normals are the noise that noise-contrastive estimation knows. All
settings are ours; the rules' papers are named where they are defined.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm import learning, mcmc
from jebm.energy import Energy, bind
from jebm.errors import ConfigError, check
from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods import diagnostics
from jebm.methods.base import Chain, Method, Metrics, Score, Summary
from jebm.methods.ebm.network import ConvolutionalEnergy, DenseEnergy
from jebm.methods.shared import Trained, descend, train

__all__ = ["EBMConfig", "EBMState", "build"]

Rule = Literal[
    "contrastive_divergence", "persistent_contrastive_divergence", "short_run_likelihood", "recovery_likelihood",
    "denoising_score_matching", "sliced_score_matching", "noise_contrastive_estimation", "energy_discrepancy",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EBMConfig:
    """A plain energy-based model.

    Attributes:
        rule: the function of `jebm.learning` that it learns by.
        image_size: height and width, a multiple of ``2 ** num_halvings``; 1 for points, with ``num_halvings=0``.
        channels: of the images; 2 for the sets ``points:NAME``.
        width: channels after the first convolution; they double where the image is halved. For points, of the three
            dense layers.
        num_halvings: of the image in the network.
        temperature: T.
        num_steps: of a chain of training, where the rule has chains.
        generate_steps: of a chain that generates.
        step_size: η, on f at temperature T.
        max_drift: bound on the norm of a step's drift ``η ∇f``; None for none.
        start_scale: s, of the starts.
        rejuvenation: probability that a persistent chain starts anew.
        bank_size: rows of persistent chains, rounded down to a multiple of the batch.
        noise_scale: σ of denoising score matching, of recovery and of energy discrepancy.
        data_noise: standard deviation of the noise on data.
        energy_regularization: α of `jebm.learning.contrastive_loss`, in the units of f/T.
        learning_rate: of Adam.
        ema_decay: of the moving average of the weights.
        dtype: in which convolutions compute; parameters, chains and energies stay float32.
    """

    rule: Rule = "persistent_contrastive_divergence"
    image_size: int = 32
    channels: int = 3
    width: int = 64
    num_halvings: int = 3
    temperature: float = 1e-2
    num_steps: int = 40
    generate_steps: int = 200
    step_size: float = 0.1
    max_drift: float | None = None
    start_scale: float = 1.0
    rejuvenation: float = 0.05
    bank_size: int = 10_000
    noise_scale: float = 0.3
    data_noise: float = 0.03
    energy_regularization: float = 0.0
    learning_rate: float = 1e-4
    ema_decay: float = 0.999
    dtype: Literal["float32", "bfloat16"] = "float32"

    SUMMARY: ClassVar[Summary] = Summary(
        name="Energy network",
        paper="",
        progress=("loss", "energy_gap", "chain_displacement"),
        curves={
            "loss": "Loss of the learning rule.",
            "energy_gradient_norm": "Norm of the gradient that trains the energy.",
            **diagnostics.CURVES,
        },
        scores={
            "energy_gap": Score("Mean energy f of generated images minus that of data: 0 where it tells no difference.")
        },
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (name,) for name in ("learning_rate", "step_size", "energy_regularization")
    }

    def __post_init__(self) -> None:
        check(
            self, image_size=">=1", channels=">=1", width=">=1", num_halvings=">=0", temperature=">0", num_steps=">=1",
            generate_steps=">=1", step_size=">0", max_drift=">0", start_scale=">0", rejuvenation=">=0", bank_size=">=1",
            noise_scale=">0", data_noise=">=0", energy_regularization=">=0", learning_rate=">0",
            ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size % 2**self.num_halvings:
            raise ConfigError(
                f"image_size={self.image_size} does not divide by 2 ** num_halvings = {2**self.num_halvings}: "
                "lower num_halvings"
            )
        if self.rejuvenation > 1:
            raise ConfigError(f"rejuvenation={self.rejuvenation} is out of range: it is a probability")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)


class EBMState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        energy: f.
        bank: the persistent chains; None of other rules.
    """

    energy: Trained
    bank: Bank | None


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        noise: standard normals on the data [B, H, W, C].
        rule_key: of the rule.
    """

    noise: Array
    rule_key: Array


def build(config: EBMConfig) -> Method:
    """The method of a configuration."""
    if config.image_size == 1:
        network: Any = DenseEnergy(config.width)
    else:
        network = ConvolutionalEnergy(config.width, config.num_halvings, jnp.dtype(config.dtype))
    optimizer = optax.adam(config.learning_rate)
    start = learning.gaussian_noise(jnp.zeros(config.image_shape), config.start_scale)
    step_size = config.step_size * config.temperature  # on E = f/T
    kernel_of = functools.partial(mcmc.langevin, step_size=step_size, max_drift=config.max_drift)

    def energy_of(params: Any) -> Energy:
        return energies.temper(bind(network.apply, {"params": params}), config.temperature)

    def starts(key: Array, n: int) -> Array:
        return jax.vmap(start.draw)(mcmc.chain_keys(key, n))

    def init(key: Array, batch: Array) -> EBMState:
        network_key, bank_key = jax.random.split(key)
        params = network.init(network_key, jnp.zeros(config.image_shape))["params"]
        chains = None
        if config.rule == "persistent_contrastive_divergence":
            chains = bank.init(starts(bank_key, bank.divisible_size(config.bank_size, batch.shape[0])))
        return EBMState(train(params, optimizer), chains)

    def loss(params: Any, state: EBMState, key: Array, data: Array) -> tuple[Array, Any]:
        return _loss(config, start, kernel_of, key, energy_of(params), data, state.bank)

    def iterate(draws: Draws, state: EBMState, images: Array) -> tuple[EBMState, Metrics]:
        data = images + config.data_noise * draws.noise
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, aux), gradients = differentiate(state.energy.params, state, draws.rule_key, data)
        metrics = {"loss": value, "energy_gradient_norm": config.temperature * optax.tree.norm(gradients)}
        metrics |= _metrics(config, energy_of(state.energy.params), data, aux)
        trained = descend(state.energy, gradients, optimizer, config.ema_decay)
        state = EBMState(trained, getattr(aux, "bank", None))
        return state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}

    def update(key: Array, state: EBMState, images: Array) -> tuple[EBMState, Metrics]:
        noise_key, rule_key = jax.random.split(key)
        return iterate(Draws(jax.random.normal(noise_key, images.shape), rule_key), state, images)

    def generate(key: Array, state: EBMState, n: int) -> Array:
        start_key, chain_key = jax.random.split(key)
        kernel = kernel_of(energy_of(state.energy.ema))
        chain = lambda key, x: mcmc.sample(key, kernel, x, config.generate_steps, trace=())[0].position  # noqa: E731
        return jax.vmap(chain)(mcmc.chain_keys(chain_key, n), starts(start_key, n))

    def scores(key: Array, state: EBMState, images: Array) -> Metrics:
        """``energy_gap``: the mean f of generated images minus that of the images."""
        mean = lambda x: config.temperature * jnp.mean(jax.vmap(energy_of(state.energy.ema))(x))  # noqa: E731
        return {"energy_gap": mean(generate(key, state, images.shape[0])) - mean(images)}

    return Method(
        image_shape=config.image_shape, init=init, update=update, generate=generate,
        energy=lambda state: energy_of(state.energy.ema), scores=scores,
        networks=lambda state: {"energy": state.energy}, temperature=config.temperature,
        chain=Chain(config.num_steps, config.step_size, config.max_drift),
        chain_starts=lambda key, state, n: starts(key, n),
        bank=lambda state: None if state.bank is None else state.bank.entries,
        evaluations_per_image=config.generate_steps,
    )  # fmt: skip


def _loss(
    config: EBMConfig, start: learning.Noise, kernel_of: Any, key: Array, energy: Energy, data: Array,
    chains: Bank | None,
) -> tuple[Array, Any]:  # fmt: skip
    """The rule's loss and what it reports."""
    steps, held = config.num_steps, {"regularization": config.energy_regularization}
    match config.rule:
        case "contrastive_divergence":
            return learning.contrastive_divergence(key, energy, data, kernel_of, steps, **held)
        case "persistent_contrastive_divergence":
            assert chains is not None
            return learning.persistent_contrastive_divergence(
                key, energy, data, chains, kernel_of, steps, start.draw, rejuvenation=config.rejuvenation, **held
            )
        case "short_run_likelihood":
            return learning.short_run_likelihood(key, energy, data, kernel_of, steps, start.draw, **held)
        case "recovery_likelihood":
            walked = lambda energy, scale: kernel_of(energy)  # noqa: E731
            return learning.recovery_likelihood(key, energy, data, walked, steps, config.noise_scale, **held)
        case "denoising_score_matching":
            return learning.denoising_score_matching(key, energy, data, config.noise_scale)
        case "sliced_score_matching":
            return learning.sliced_score_matching(key, energy, data)
        case "noise_contrastive_estimation":
            return learning.noise_contrastive_estimation(key, energy, data, start)
        case "energy_discrepancy":
            return learning.energy_discrepancy(key, energy, data, config.noise_scale)


def _metrics(config: EBMConfig, energy: Energy, data: Array, aux: Any) -> Metrics:
    """What the rule reports, energies in the units of f."""
    if isinstance(aux, learning.Scores):
        return {"energy_data": config.temperature * aux.energy, "score_norm": aux.score_norm}
    metrics = {
        "energy_data": config.temperature * aux.energy_data, "energy_negative": config.temperature * aux.energy_negative
    }  # fmt: skip
    if isinstance(aux, learning.Classified):
        return {**metrics, "accuracy": aux.accuracy}
    metrics |= diagnostics.displacement(aux.starts, aux.negatives) | diagnostics.saturation(aux.negatives)
    return metrics | diagnostics.gradient_norms(energy, data, aux.negatives)
