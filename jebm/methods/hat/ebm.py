"""Hat EBM (Hill et al., arXiv 2210.16486): an energy over generator output plus residual, ``x = G(z) + y``.

The hat network gives H(x) to an image; ``U(z, y) = H(G(z) + y)/T`` is the energy of the pair (`hat_chains` has its
further terms, the Langevin steps, and which law is sampled). For a data image all pairs with ``G(z) + y = x`` share
``∇_θ U = ∇_θ H(x)/T``, so maximum likelihood needs neither z of the data nor a Jacobian of G:

    L(θ) = (mean H(x⁺) - mean H(x⁻))/T,    x⁺ data plus a little noise,  x⁻ = G(z) + y at the end of chains

Three applications:

* ``synthesis``: z ~ N(0, I) stays, chains move y. G learns along: its targets are ends of earlier chains, paired with
  their z in a bank. One iteration: chains; hat update; B distinct rows of the bank; generator update on those *old*
  pairs, ``1000 mean (G(z) - x)²``; the rows are overwritten with the new pairs.
* ``refinement``: G is given and frozen; chains move z and y, from z ~ N(0, I).
* ``retrofit``: the same, over the decoder of a deterministic autoencoder (`hat_autoencoder`).

The method's energy is ``H/T``; the logged energies and held-out scores are means of H.

Facts and constants are those of the authors' released code; what is ours is marked [ours]. As there, samples come from
the raw weights, and moving averages are kept for comparison. One difference: with several devices the gradient is
clipped after it is averaged over them, not before.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import FlaxError
from jax import Array

from jebm import energy as energies
from jebm import mcmc
from jebm.energy import Energy, Generator, PyTree, as_partial, bind
from jebm.errors import ConfigError
from jebm.learning.likelihood import contrastive_loss
from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods import accumulation, diagnostics
from jebm.methods.base import Chain, Method, Metrics
from jebm.methods.hat import keras
from jebm.methods.hat.chains import Samples, run_chains
from jebm.methods.hat.config import GIVEN, HatEBMConfig
from jebm.methods.hat.networks import HatDecoder, HatEnergy, HatGenerator
from jebm.methods.shared import Trained, descend, train

__all__ = [
    "BaseGenerator", "Draws", "HatEBMState", "base_generator", "build", "draw", "energy_loss", "generator_loss",
    "hat_network", "initialize", "iterate", "networks", "optimizers", "starts", "update_energy", "update_generator",
]  # fmt: skip

Tree = Mapping[str, Any]


class HatEBMState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        energy: the hat.
        generator: the generator that synthesis trains; a frozen one's variables, or the leaves of a given function.
        batch_stats: the frozen statistics of the generator that trains; empty otherwise.
        bank: pairs ``{"z", "image"}`` in synthesis, else None.
    """

    energy: Trained
    generator: Any
    batch_stats: Tree
    bank: Bank | None


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        latent: where chains start, [B, ...].
        residual: standard normals of the residuals' start [B, H, W, C].
        data: standard normals of the data's noise [B, H, W, C].
        chain_key: of the chains.
        indices: distinct rows of the bank [B], or None without one.
        chain_noise: recorded noise instead of the key, see `hat_chains.run_chains`; or None.
    """

    latent: Array
    residual: Array
    data: Array
    chain_key: Array
    indices: Array | None
    chain_noise: PyTree = None


class BaseGenerator(NamedTuple):
    """The generator under the hat, as pure functions.

    Attributes:
        init: ``key -> variables``.
        apply: ``(variables, z) -> image``, of one latent; a network's takes batches, too.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array], Any]


def hat_network(config: HatEBMConfig) -> HatEnergy:
    """The hat of a configuration."""
    return HatEnergy(config.image_size, config.energy_width, jnp.dtype(config.dtype), config.rematerialize)


def base_generator(config: HatEBMConfig, generator: Generator | None = None) -> BaseGenerator:
    """The configuration's own network, or a given pure function ``z -> image`` of one latent.

    The leaves of a given generator (`jebm.energy.bind`) become part of the state and of its checkpoints; arrays in the
    closure of a plain function do not. Abstract leaves give the structure of a state that a checkpoint will fill.

    Raises:
        ConfigError: the configuration names a run, but no generator is given.
    """
    if generator is None:
        if config.generator == GIVEN:
            raise ConfigError(
                f"generator={GIVEN!r} is a Python function, which no file holds: train with jebm.refine(generator, "
                "data, config), and read the run with jebm.load(path, generator=generator), for run.generate(key, n) "
                "and jebm.evaluate(run)"
            )
        if config.generator_run is not None:
            raise ConfigError(
                f"generator={config.generator!r}: give the generator of that run (jebm.runs.run.build loads it)"
            )
        c, dtype = config, jnp.dtype(config.dtype)
        module: nn.Module
        if config.application == "retrofit":
            module = HatDecoder(c.generator_width, c.channels, c.output_scale, dtype)
        else:
            module = HatGenerator(c.image_size, c.generator_width, c.channels, c.output_scale, dtype)
        return BaseGenerator(lambda key: module.init(key, jnp.zeros(config.latent_shape)), module.apply)
    leaves, structure = jax.tree.flatten(as_partial(generator))
    return BaseGenerator(
        lambda key: [_array(leaf) for leaf in leaves],
        lambda variables, z: jax.tree.unflatten(structure, variables)(z),
    )


def _array(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.array(leaf)


def initialize(config: HatEBMConfig, base: BaseGenerator, key: Array, batch: Array) -> HatEBMState:
    """A fresh state; ``batch`` gives the batch size.

    Raises:
        ConfigError: a generator of other shapes than the configuration's.
    """
    energy_key, generator_key, bank_key = jax.random.split(key, 3)
    try:
        hat = hat_network(config).init(energy_key, jnp.zeros(config.image_shape))["params"]
        variables = base.init(generator_key)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_generator(config, base, variables)
    energy_optimizer, generator_optimizer = optimizers(config)
    energy = train(hat, energy_optimizer)
    if config.application != "synthesis":
        return HatEBMState(energy, generator=variables, batch_stats={}, bank=None)
    return HatEBMState(
        energy, generator=train(variables["params"], generator_optimizer), batch_stats=variables["batch_stats"],
        bank=_initial_bank(config, base, variables, bank_key, batch.shape[0]),
    )  # fmt: skip


def _check_generator(config: HatEBMConfig, base: BaseGenerator, variables: PyTree) -> None:
    expected, latent = config.image_shape, config.latent_shape
    try:
        shape = jax.eval_shape(base.apply, variables, jnp.zeros(latent)).shape
    except (TypeError, ValueError, FlaxError) as error:
        raise ConfigError(
            f"the generator does not take latents of shape {latent} ({str(error).splitlines()[0]}): set "
            "method.latent_size to its own"
        ) from error
    if shape != expected:
        raise ConfigError(
            f"the generator makes images of {shape} from latents of {latent}, the method needs {expected}"
        )


def _initial_bank(config: HatEBMConfig, base: BaseGenerator, variables: PyTree, key: Array, batch_size: int) -> Bank:
    size = bank.divisible_size(config.bank_size, batch_size)
    z = jax.random.normal(key, (size, *config.latent_shape))
    in_batches = z.reshape(-1, batch_size, *z.shape[1:])
    images = jax.lax.map(jax.vmap(functools.partial(base.apply, variables)), in_batches)
    return bank.init({"z": z, "image": images.reshape(size, *config.image_shape)})


def optimizers(config: HatEBMConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Keras's Adam for the hat, after the clip if one is set, and for the generator."""
    energy = keras.adam(config.energy_learning_rate)
    if config.energy_gradient_clip is not None:
        energy = optax.chain(keras.clip_each_tensor(config.energy_gradient_clip), energy)
    return energy, keras.adam(config.generator_learning_rate)


def draw(config: HatEBMConfig, key: Array, state: HatEBMState, images: Array) -> Draws:
    """The randomness of one iteration, from one key."""
    latent, residual, data, chain_key, bank_key = jax.random.split(key, 5)
    n = images.shape[0]
    return Draws(
        latent=jax.random.normal(latent, (n, *config.latent_shape)),
        residual=jax.random.normal(residual, images.shape),
        data=jax.random.normal(data, images.shape),
        chain_key=chain_key,
        indices=None if state.bank is None else bank.draw(bank_key, state.bank, n)[0],
    )


def iterate(
    config: HatEBMConfig, base: BaseGenerator, draws: Draws, state: HatEBMState, images: Array, microbatches: int = 1
) -> tuple[HatEBMState, Metrics]:
    """One training iteration; see the module's docstring."""
    hat, generator = networks(config, base, state)
    samples = run_chains(
        draws.chain_key, hat, generator, draws.latent, config.chain.residual_start_scale * draws.residual, config.chain,
        config.temperature, draws.chain_noise, microbatches,
    )  # fmt: skip
    data = images + config.data_noise * draws.data
    state, metrics = update_energy(config, state, data, samples.image, microbatches)
    metrics |= _chain_metrics(samples) | diagnostics.saturation(samples.image)
    metrics |= diagnostics.gradient_norms(hat, data, samples.image)
    if state.bank is not None:
        assert draws.indices is not None
        pairs = bank.read(state.bank, draws.indices)
        metrics["bank_age"] = state.bank.ages[draws.indices].astype(jnp.float32).mean()
        state, metrics["generator_loss"] = update_generator(
            config, base, state, pairs["z"], pairs["image"], microbatches
        )
        new = {"z": samples.z, "image": samples.image}
        state = state._replace(bank=bank.replace(cast(Bank, state.bank), draws.indices, new))
    return state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def _chain_metrics(samples: Samples) -> Metrics:
    norm = lambda a: jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=1).mean()  # noqa: E731
    return {
        "residual_drift": samples.residual_drift,
        "latent_drift": samples.latent_drift,
        "residual_norm": norm(samples.y),
        "latent_norm": norm(samples.z),
    }


def energy_loss(config: HatEBMConfig, params: Tree, data: Array, samples: Array) -> tuple[Array, Metrics]:
    """``L = (mean H(x⁺) - mean H(x⁻))/T``, with its regularisation if any, and the two means."""
    on_data, on_samples = (cast(Array, hat_network(config).apply({"params": params}, x)) for x in (data, samples))
    loss = contrastive_loss(on_data, on_samples, config.temperature, config.energy_regularization)
    return loss, {"energy_loss": loss, "energy_data": jnp.mean(on_data), "energy_negative": jnp.mean(on_samples)}


def update_energy(
    config: HatEBMConfig, state: HatEBMState, data: Array, samples: Array, microbatches: int = 1
) -> tuple[HatEBMState, Metrics]:
    """One step of the hat on `energy_loss`, and of its moving average."""

    def loss(params: Tree, data: Array, samples: Array) -> tuple[Array, Any]:
        value, metrics = energy_loss(config, params, data, samples)
        return value, (metrics, ())

    gradients, metrics, _ = accumulation.gradients(loss, microbatches, state.energy.params, data, samples)
    metrics["energy_gradient_norm"] = config.temperature * optax.tree.norm(gradients)
    energy = descend(state.energy, gradients, optimizers(config)[0], config.ema_decay)
    return state._replace(energy=energy), metrics


def generator_loss(config: HatEBMConfig, base: BaseGenerator, variables: Tree, z: Array, images: Array) -> Array:
    """``1000 mean (G(z) - x)²`` over batch, pixels and channels."""
    generated = base.apply(variables, z)
    return config.generator_loss_scale * jnp.square(generated - images).mean()


def update_generator(
    config: HatEBMConfig, base: BaseGenerator, state: HatEBMState, z: Array, images: Array, microbatches: int = 1
) -> tuple[HatEBMState, Array]:
    """One step of the generator on `generator_loss`, and of its moving average; its statistics do not change."""

    def loss(params: Tree, z: Array, images: Array) -> tuple[Array, Any]:
        value = generator_loss(config, base, {"params": params, "batch_stats": state.batch_stats}, z, images)
        return value, (value, ())

    gradients, loss_value, _ = accumulation.gradients(loss, microbatches, state.generator.params, z, images)
    generator = descend(state.generator, gradients, optimizers(config)[1], config.ema_decay)
    return state._replace(generator=generator), loss_value


def networks(config: HatEBMConfig, base: BaseGenerator, state: HatEBMState) -> tuple[Energy, Generator]:
    """H of one image and G of one latent."""
    return bind(hat_network(config).apply, {"params": state.energy.params}), _generator(base, state)


def _generator(base: BaseGenerator, state: HatEBMState) -> Generator:
    variables = state.generator
    if isinstance(variables, Trained):
        variables = {"params": variables.params, "batch_stats": state.batch_stats}
    return bind(base.apply, variables)


def starts(config: HatEBMConfig, key: Array, n: int) -> tuple[Array, Array]:
    """Starts of ``n`` test chains: z ~ N(0, I) and y; the i-th does not depend on ``n``."""

    def start(key: Array) -> tuple[Array, Array]:
        latent, residual = jax.random.split(key)
        return jax.random.normal(latent, config.latent_shape), jax.random.normal(residual, config.image_shape)

    z, y = jax.vmap(start)(mcmc.chain_keys(key, n))
    return z, config.test_chain.residual_start_scale * y


def chain_starts(config: HatEBMConfig, base: BaseGenerator, key: Array, state: HatEBMState, n: int) -> Array:
    """Images ``G(z) + y`` at the start of ``n`` test chains."""
    z, y = starts(config, key, n)
    return jax.vmap(networks(config, base, state)[1])(z) + y


def generate(config: HatEBMConfig, base: BaseGenerator, key: Array, state: HatEBMState, n: int) -> Array:
    """``n`` samples ``G(z) + y`` at the end of test chains from z ~ N(0, I); with no steps, of the generator alone.

    Sample i does not depend on ``n``. Not clamped.
    """
    start_key, chain_key = jax.random.split(key)
    hat, generator = networks(config, base, state)
    z, y = starts(config, start_key, n)
    return run_chains(chain_key, hat, generator, z, y, config.test_chain, config.temperature).image


def scores(config: HatEBMConfig, base: BaseGenerator, key: Array, state: HatEBMState, images: Array) -> Metrics:
    """Held-out scores: mean H of samples, and of the same chains' starts, each minus mean H of data."""
    start_key, chain_key = jax.random.split(key)
    hat, generator = networks(config, base, state)
    z, y = starts(config, start_key, images.shape[0])
    mean = lambda x: hat(x).mean()  # noqa: E731
    ends = run_chains(chain_key, hat, generator, z, y, config.test_chain, config.temperature).image
    return {
        "energy_gap": mean(ends) - mean(images),
        "energy_gap_generator": mean(jax.vmap(generator)(z) + y) - mean(images),
    }


def build(config: HatEBMConfig, generator: Generator | None = None) -> Method:
    """The method of a configuration.

    Args:
        config: the configuration.
        generator: the frozen generator of a refinement or retrofit: any pure function from one latent to one image
            [H, W, C]; see `base_generator`. By default the configuration's own network.
    """
    if generator is not None and config.application == "synthesis":
        raise ConfigError(
            "synthesis trains its own generator; to put a hat on a given one use application='refinement'"
        )
    base, apply_hat = base_generator(config, generator), hat_network(config).apply

    def update(key: Array, state: HatEBMState, images: Array, microbatches: int = 1) -> tuple[HatEBMState, Metrics]:
        return iterate(config, base, draw(config, key, state, images), state, images, microbatches)

    def energy(state: HatEBMState) -> Energy:
        """``H/T`` of one image: U depends on (z, y) through x alone, so that no z is inferred."""
        return energies.temper(bind(apply_hat, {"params": state.energy.params}), config.temperature)

    return Method(
        image_shape=config.image_shape,
        init=functools.partial(initialize, config, base),
        update=update,
        generate=functools.partial(generate, config, base),
        energy=energy,
        scores=functools.partial(scores, config, base),
        networks=_learning_and_frozen,
        generator=functools.partial(_generator, base),
        latent_shape=config.latent_shape,
        temperature=config.temperature,
        chain=chain(config),
        chain_starts=functools.partial(chain_starts, config, base),
        evaluations_per_image=_evaluations(config),
        weights="raw",
        whole_batch=None,
    )


def _learning_and_frozen(state: HatEBMState) -> dict[str, Any]:
    generator = state.generator
    if isinstance(generator, Mapping):  # a frozen network's variables: statistics are no parameters
        generator = generator["params"]
    return {"energy": state.energy, "generator": generator}


def chain(config: HatEBMConfig) -> Chain:
    """The chain of the residual, taken on the image: ε on H at T, without ``τ‖y‖²``."""
    step_size = mcmc.from_noise_scale(config.chain.noise_scale, config.temperature)
    return Chain(config.chain.num_steps, step_size, config.chain.max_drift)


def _evaluations(config: HatEBMConfig) -> int:
    """Evaluations of hat and generator for one sample; a gradient counts as one."""
    steps = config.test_chain.num_steps
    if config.application == "synthesis":
        return 1 + steps  # G once, then H at each step
    return 2 + 3 * steps  # at each step H for y, then H and G for the next z
