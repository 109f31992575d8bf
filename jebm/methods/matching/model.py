"""Energy matching (arXiv 2504.10612): one potential V without time, in two phases.

First V learns by `jebm.learning.flow_matching` to carry normal noise to the data along ``-∇V`` in the time from 0 to 1,
without a chain. Then `jebm.learning.energy_matching` adds the contrast of data and chains, so that near the data
``exp(-V/ε_max)`` is their density. A sample is the end of ``dx = -∇V dt + sqrt(2 ε(t)) dW`` from noise, at a time
τ_s > 1, clipped to [-1, 1].

The paper's: both losses and phases, ε(t), the start at N(0, I). From the released code: loss weights, ε_max, step and
number of steps on CIFAR-10 (the defaults here), Adam with β₂ = 0.95 and gradients clipped at norm 1, the averages'
decay, negatives half from data and half from noise, samples clipped. Ours: the network, Euler's steps where
they evaluate with Heun's, a young average that forgets its start, no warm-up of the learning rate, and what
`jebm.learning.matching` says.
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
from jebm import mcmc
from jebm.energy import Energy, bind
from jebm.errors import ConfigError, check
from jebm.learning import matching
from jebm.learning.likelihood import contrastive_loss
from jebm.learning.likelihood import energies as values
from jebm.learning.matching import Paths
from jebm.methods import accumulation, diagnostics
from jebm.methods.base import Chain, Method, Metrics, Score, Summary
from jebm.methods.matching.network import DensePotential, Potential
from jebm.methods.shared import Trained, descend, prior_samples, train, warm_up

__all__ = ["EnergyMatchingConfig", "EnergyMatchingState", "build"]


@dataclasses.dataclass(frozen=True)
class EnergyMatchingConfig:
    """Energy matching.

    Attributes:
        image_size: height and width; 1 for points.
        channels: of the images; 2 for the sets ``points:NAME``.
        network: "convolutions", or "dense" layers for points and the smallest images.
        width: channels after the first convolution; of the dense layers.
        num_halvings: of the image by convolutions; ``2 ** num_halvings`` divides ``image_size``.
        num_blocks: residual blocks, of convolutions at each resolution.
        head_width: of the dense layer between convolutions and the scalar.
        warmup_steps: iterations of the first phase.
        contrastive_weight: λ, of the contrast in the second phase.
        temperature: ε_max.
        ramp_start: τ*, the time at which ε(t) begins to rise, and the flow loss of the second phase to fall.
        step_size: Δt, of training's chains and of generation.
        num_steps: of a chain of training, which ends at time ``num_steps * step_size``.
        generate_steps: of a sample: τ_s in steps.
        learning_rate: of Adam.
        ema_decay: of the moving average of the weights.
        dtype: in which convolutions compute; parameters, chains and V stay float32.
    """

    image_size: int = 32
    channels: int = 3
    network: Literal["convolutions", "dense"] = "convolutions"
    width: int = 64
    num_halvings: int = 3
    num_blocks: int = 2
    head_width: int = 512
    warmup_steps: int = 145_000
    contrastive_weight: float = 1e-3
    temperature: float = 0.01
    ramp_start: float = 1.0
    step_size: float = 0.01
    num_steps: int = 200
    generate_steps: int = 325
    learning_rate: float = 1.2e-3
    ema_decay: float = 0.9999
    dtype: Literal["float32", "bfloat16"] = "float32"

    SUMMARY: ClassVar[Summary] = Summary(
        name="Energy matching",
        paper="arXiv 2504.10612",
        progress=("flow_loss", "energy_gap", "chain_displacement"),
        curves={
            "flow_loss": "Squared error of the field against the paths' velocities, a number of an image.",
            "energy_gradient_norm": "Norm of the gradient that trains the potential.",
            **diagnostics.CURVES,
        },
        scores={
            "energy_gap": Score("Mean potential of generated images minus that of data: 0 where they look alike to it.")
        },
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {"learning_rate": ("learning_rate",)}

    def __post_init__(self) -> None:
        check(
            self, image_size=">=1", channels=">=1", width=">=1", num_halvings=">=0", num_blocks=">=0", head_width=">=1",
            warmup_steps=">=0", contrastive_weight=">=0", temperature=">0", ramp_start="in [0, 1]", step_size=">0",
            num_steps=">=1", generate_steps=">=1", learning_rate=">0", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.network == "convolutions" and self.image_size % 2**self.num_halvings:
            raise ConfigError(
                f"image_size={self.image_size} does not divide by 2 ** num_halvings = {2**self.num_halvings}: "
                "lower num_halvings"
            )
        for name in ("num_steps", "generate_steps"):
            steps = getattr(self, name)
            if steps * self.step_size <= 1.0:
                raise ConfigError(
                    f"{name}={steps} of step_size={self.step_size} end before time 1, when the noise has become data: "
                    f"set {name} above {1.0 / self.step_size:g}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)


class EnergyMatchingState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        potential: V.
        step: iterations made, int32.
    """

    potential: Trained
    step: Array


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        paths: from coupled noise to the batch, with the weights of the second phase.
        noise: standard normals [B, H, W, C], where chains start.
        keys: of the chains [B].
    """

    paths: Paths
    noise: Array
    keys: Array


def build(config: EnergyMatchingConfig) -> Method:
    """The method of a configuration."""
    network: Any = DensePotential(config.width, config.num_blocks)
    if config.network == "convolutions":
        network = Potential(
            config.width, config.num_halvings, config.num_blocks, config.head_width, jnp.dtype(config.dtype)
        )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate, b2=0.95))
    schedule = (config.temperature, config.ramp_start, config.step_size)

    def potential_of(params: Any) -> Energy:
        return bind(network.apply, {"params": params})

    def energy_of(params: Any) -> Energy:
        return energies.temper(potential_of(params), config.temperature)

    def init(key: Array, batch: Array) -> EnergyMatchingState:
        params = network.init(key, jnp.zeros(config.image_shape))["params"]
        return EnergyMatchingState(train(params, optimizer), jnp.zeros((), jnp.int32))

    def draw(key: Array, images: Array) -> Draws:
        path_key, noise_key, chain_key = jax.random.split(key, 3)
        start = lambda key: jax.random.normal(key, config.image_shape)  # noqa: E731
        return Draws(
            matching.transport_paths(path_key, images, start, config.ramp_start),
            prior_samples(noise_key, len(images), config.image_shape), mcmc.chain_keys(chain_key, len(images)),
        )  # fmt: skip

    def losses(contrasted: bool, params: Any, paths: Paths, images: Array, negatives: Array) -> tuple[Array, Any]:
        loss = total = matching.flow_loss(potential_of(params), paths)
        potential = potential_of(params if contrasted else jax.lax.stop_gradient(params))
        on_images, on_negatives = values(potential, images), values(potential, negatives)
        if contrasted:
            total = loss + config.contrastive_weight * contrastive_loss(on_images, on_negatives, 1.0)
        means = {"energy_data": jnp.mean(on_images), "energy_negative": jnp.mean(on_negatives)}
        return total, ({"loss": total, "flow_loss": loss, **means}, ())

    def iterate(
        draws: Draws, state: EnergyMatchingState, images: Array, microbatches: int = 1
    ) -> tuple[EnergyMatchingState, Metrics]:
        params, table = state.potential.params, matching.temperatures(*schedule, config.num_steps)

        def first(draws: Draws) -> Any:
            """Without chains: as negatives, the noise itself is reported."""
            paths = draws.paths._replace(weights=jnp.ones_like(draws.paths.weights))
            loss = functools.partial(losses, False)
            found, metrics, _ = accumulation.gradients(loss, microbatches, params, paths, images, draws.noise)
            return found, metrics, draws.noise, draws.noise

        def second(draws: Draws) -> Any:
            starts, from_data = matching.half_from_data(images, draws.noise)
            chains = lambda keys, starts, from_data: matching.walk(  # noqa: E731
                potential_of(params), table, config.step_size, keys, starts, from_data
            )
            negatives = accumulation.by_rows(chains, microbatches, draws.keys, starts, from_data)
            loss = functools.partial(losses, True)
            found, metrics, _ = accumulation.gradients(loss, microbatches, params, draws.paths, images, negatives)
            return found, metrics, starts, negatives

        contrasted = state.step >= config.warmup_steps
        gradients, metrics, starts, negatives = jax.lax.cond(contrasted, second, first, draws)
        metrics["energy_gradient_norm"] = optax.tree.norm(gradients)
        metrics |= diagnostics.displacement(starts, negatives) | diagnostics.saturation(negatives)
        metrics |= diagnostics.gradient_norms(potential_of(params), images, negatives)
        trained = descend(state.potential, gradients, optimizer, warm_up(config.ema_decay, state.step))
        state = EnergyMatchingState(trained, state.step + 1)
        return state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}

    def update(
        key: Array, state: EnergyMatchingState, images: Array, microbatches: int = 1
    ) -> tuple[EnergyMatchingState, Metrics]:
        return iterate(draw(key, images), state, images, microbatches)

    def generate(key: Array, state: EnergyMatchingState, n: int) -> Array:
        start_key, chain_key = jax.random.split(key)
        at = mcmc.table_schedule(matching.temperatures(*schedule, config.generate_steps))
        kernel = mcmc.langevin(potential_of(state.potential.ema), config.step_size, at)
        chain = lambda key, x: mcmc.sample(key, kernel, x, config.generate_steps, trace=())[0].position  # noqa: E731
        starts = prior_samples(start_key, n, config.image_shape)
        return jnp.clip(jax.vmap(chain)(mcmc.chain_keys(chain_key, n), starts), -1.0, 1.0)

    def scores(key: Array, state: EnergyMatchingState, images: Array) -> Metrics:
        """``energy_gap``: the mean V of generated images minus that of the images."""
        mean = lambda x: jnp.mean(values(potential_of(state.potential.ema), x))  # noqa: E731
        return {"energy_gap": mean(generate(key, state, images.shape[0])) - mean(images)}

    return Method(
        image_shape=config.image_shape, init=init, update=update, generate=generate,
        energy=lambda state: energy_of(state.potential.ema), scores=scores,
        networks=lambda state: {"potential": state.potential}, temperature=config.temperature,
        chain=Chain(config.num_steps, config.step_size), evaluations_per_image=config.generate_steps,
        whole_batch=None,
    )  # fmt: skip
