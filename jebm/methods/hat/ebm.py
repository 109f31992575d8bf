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

Facts and constants are those of the authors' released code; what is ours is marked [ours]. As there, samples come from
the raw weights; the moving averages are kept beside. One difference: gradients are clipped whole, not device by device.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import FlaxError
from jax import Array

from jebm import mcmc
from jebm.energy import Energy, Generator, PyTree, bind
from jebm.errors import ConfigError, check
from jebm.mcmc import bank
from jebm.mcmc.bank import Bank
from jebm.methods import diagnostics as watching
from jebm.methods.base import Method, Metrics, TrainingChain
from jebm.methods.hat import keras as keras_optimizers
from jebm.methods.hat.chains import ChainConfig, Samples, as_pytree, run_chains
from jebm.methods.hat.networks import IMAGE_SIZES, HatDecoder, HatEnergy, HatGenerator, code_shape
from jebm.methods.maximum_likelihood import contrast

__all__ = [
    "Base", "ChainConfig", "Draws", "HatEBMConfig", "HatEBMState", "base_generator", "build", "draw", "energy_loss",
    "generator_loss", "generator_of", "hat_network", "initialize", "iterate", "networks_of", "optimizers", "starts",
    "update_energy", "update_generator",
]  # fmt: skip

Tree = Mapping[str, Any]
Rates = tuple[tuple[float, int], ...]


@dataclasses.dataclass(frozen=True)
class HatEBMConfig:
    """A Hat EBM; defaults are the released ones of CIFAR-10 synthesis (8,481,539 parameters).

    Attributes:
        application: see the module's docstring.
        image_size: 8, 16, 32, 64 or 128 (8 and 16 are ours).
        channels: of the images.
        latent_size: of z; a retrofit's codes are image_size/2 x image_size/2 instead.
        energy_width: of the hat, see `jebm.methods.hat.networks`.
        generator_width: of the generator or decoder.
        output_scale: the network's images are ``output_scale * tanh``: 2, or 1 for an SN-GAN.
        generator: which frozen generator: ``"network"``, the network of this configuration with the weights that the
            state brings (`jebm convert`); or a run directory. Empty in synthesis.
        temperature: T, in training and in sampling: a hat trained at one T is no model at another.
        chain: of training.
        test_chain: of generation.
        energy_learning_rate: rows (learning rate, first update), of the hat's Adam.
        generator_learning_rate: likewise of the generator.
        energy_gradient_clip: bound on the norm of each tensor of the hat's gradient, with its factor 1/T; or None.
        energy_regularization: α of `contrast.contrast` [ours, a stabiliser; the released code has none].
        data_noise: standard deviation of the noise on data.
        generator_loss_scale: factor of the generator's mean squared error.
        bank_size: rows, rounded down to a multiple of the batch.
        energy_average_decay: of the hat's moving average.
        generator_average_decay: of the generator's.
        weights: which weights generate and score: ``"raw"``, or their ``"average"``.
        dtype: in which the networks compute; parameters, chains, noise and energies stay float32.
        rematerialize: gradients of the energy compute each residual block again instead of keeping its inside: less
            memory, more time; results the same up to rounding.
    """

    application: Literal["synthesis", "refinement", "retrofit"] = "synthesis"
    image_size: int = 32
    channels: int = 3
    latent_size: int = 128
    energy_width: int = 256
    generator_width: int = 256
    output_scale: float = 2.0
    generator: str = ""
    temperature: float = 1e-8
    chain: ChainConfig = ChainConfig()
    test_chain: ChainConfig = ChainConfig(num_steps=125, max_displacement=None, residual_start_scale=0.01)
    energy_learning_rate: Rates = ((1e-4, 0),)
    generator_learning_rate: Rates = ((1e-4, 0),)
    energy_gradient_clip: float | None = None
    energy_regularization: float = 0.0
    data_noise: float = 1e-3
    generator_loss_scale: float = 1000.0
    bank_size: int = 10_000
    energy_average_decay: float = 0.9999
    generator_average_decay: float = 0.9999
    weights: Literal["raw", "average"] = "raw"
    dtype: Literal["float32", "bfloat16"] = "float32"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", latent_size=">=1", energy_width=">=1", generator_width=">=1", output_scale=">0",
            temperature=">0", energy_gradient_clip=">0", data_noise=">=0", generator_loss_scale=">0", bank_size=">=1",
            energy_regularization=">=0", energy_average_decay="in [0, 1)", generator_average_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be one of {IMAGE_SIZES}")
        keras_optimizers.check_steps("energy_learning_rate", self.energy_learning_rate)
        keras_optimizers.check_steps("generator_learning_rate", self.generator_learning_rate)
        joint = self.application != "synthesis"
        for name, chain in (("chain", self.chain), ("test_chain", self.test_chain)):
            if (chain.latent_noise_scale > 0) != joint:
                rule = "must be above 0: its chains move z" if joint else "must be 0: z stays"
                raise ConfigError(
                    f"{name}.latent_noise_scale={chain.latent_noise_scale}: in {self.application} it {rule}"
                )
        if joint and not self.generator:
            raise ConfigError(
                f"generator='': {self.application} needs one: the directory of a run (an autoencoder, a VAE, a "
                "generator), or 'network' for weights that 'jebm convert' brings"
            )
        if self.generator and not joint:
            raise ConfigError(f"generator={self.generator!r}: synthesis trains its own generator; leave it empty")


class HatEBMState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        energy: parameters of the hat.
        energy_average: their moving average.
        energy_optimizer: Adam's state.
        generator: variables of the generator: ``{"params", "batch_stats"}`` of a network, the leaves of a given one.
        generator_average: moving average of its parameters; empty where it is frozen.
        generator_optimizer: Adam's state; empty where it is frozen.
        bank: pairs ``{"z", "image"}``; None without.
    """

    energy: Tree
    energy_average: Tree
    energy_optimizer: Any
    generator: Any
    generator_average: Any
    generator_optimizer: Any
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


class Base(NamedTuple):
    """The generator under the hat, as pure functions.

    Attributes:
        init: ``key -> variables``.
        apply: ``(variables, z) -> image``, of one latent; a network's takes batches, too.
    """

    init: Any
    apply: Any


def hat_network(config: HatEBMConfig) -> HatEnergy:
    """The hat of a configuration."""
    return HatEnergy(config.image_size, config.energy_width, jnp.dtype(config.dtype), config.rematerialize)


def base_generator(config: HatEBMConfig, generator: Generator | None = None) -> Base:
    """The network of the configuration, or any given pure function ``z -> image`` of one latent.

    Of a given generator, the leaves (`jebm.energy.bind`) become part of the state and of its checkpoints; arrays that
    a plain function closes over do not.

    Raises:
        ConfigError: the configuration names a run, but no generator is given.
    """
    if generator is None:
        if config.generator not in ("", "network"):
            raise ConfigError(f"generator={config.generator!r}: take that run itself (jebm.runs.run.build loads it)")
        c, dtype = config, jnp.dtype(config.dtype)
        module: nn.Module
        if config.application == "retrofit":
            module = HatDecoder(c.generator_width, c.channels, c.output_scale, dtype)
        else:
            module = HatGenerator(c.image_size, c.generator_width, c.channels, c.output_scale, dtype)
        return Base(lambda key: module.init(key, jnp.zeros(_latent_shape(config))), module.apply)
    leaves, structure = jax.tree.flatten(as_pytree(generator))
    return Base(
        lambda key: [jnp.array(leaf) for leaf in leaves],
        lambda variables, z: jax.tree.unflatten(structure, variables)(z),
    )


def _latent_shape(config: HatEBMConfig) -> tuple[int, ...]:
    return code_shape(config.image_size) if config.application == "retrofit" else (config.latent_size,)


def _image_shape(config: HatEBMConfig) -> tuple[int, int, int]:
    return (config.image_size, config.image_size, config.channels)


def initialize(config: HatEBMConfig, base: Base, key: Array, batch: Array) -> HatEBMState:
    """A fresh state; ``batch`` gives the image shape and the batch size.

    Raises:
        ConfigError: data, or a generator, of other shapes than the configuration's.
    """
    shape = _image_shape(config)
    if batch.shape[1:] != shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects {shape}: "
            "set method.image_size and method.channels, or another data.source"
        )
    energy_key, generator_key, bank_key = jax.random.split(key, 3)
    try:
        energy = hat_network(config).init(energy_key, jnp.zeros(shape))["params"]
        generator = base.init(generator_key)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_generator(config, base, generator)
    energy_optimizer, generator_optimizer = optimizers(config)
    trains = config.application == "synthesis"
    return HatEBMState(
        energy=energy,
        energy_average=jax.tree.map(jnp.array, energy),
        energy_optimizer=energy_optimizer.init(energy),
        generator=generator,
        generator_average=jax.tree.map(jnp.array, generator["params"]) if trains else (),
        generator_optimizer=generator_optimizer.init(generator["params"]) if trains else (),
        bank=_initial_bank(config, base, generator, bank_key, batch.shape[0]) if trains else None,
    )


def _check_generator(config: HatEBMConfig, base: Base, variables: PyTree) -> None:
    expected, latent = _image_shape(config), _latent_shape(config)
    try:
        given = jax.eval_shape(base.apply, variables, jnp.zeros(latent)).shape
    except (TypeError, ValueError, FlaxError) as error:
        raise ConfigError(
            f"the generator does not take latents of shape {latent} ({str(error).splitlines()[0]}): set "
            "method.latent_size to its own"
        ) from error
    if given != expected:
        raise ConfigError(
            f"the generator makes images of {given} from latents of {latent}, the method needs {expected}"
        )


def _initial_bank(config: HatEBMConfig, base: Base, variables: PyTree, key: Array, batch_size: int) -> Bank:
    size = bank.rounded_size(config.bank_size, batch_size)
    z = jax.random.normal(key, (size, *_latent_shape(config)))
    in_batches = z.reshape(-1, batch_size, *z.shape[1:])
    images = jax.lax.map(jax.vmap(functools.partial(base.apply, variables)), in_batches)
    return bank.init({"z": z, "image": images.reshape(size, *_image_shape(config))})


def optimizers(config: HatEBMConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Keras's Adam of the hat, behind the clip where there is one, and of the generator."""
    energy = keras_optimizers.adam(config.energy_learning_rate)
    if config.energy_gradient_clip is not None:
        energy = optax.chain(keras_optimizers.clip_each_tensor(config.energy_gradient_clip), energy)
    return energy, keras_optimizers.adam(config.generator_learning_rate)


def draw(config: HatEBMConfig, key: Array, state: HatEBMState, batch: Array) -> Draws:
    """The randomness of one iteration, from one key."""
    latent, residual, data, chain_key, bank_key = jax.random.split(key, 5)
    n = batch.shape[0]
    return Draws(
        latent=jax.random.normal(latent, (n, *_latent_shape(config))),
        residual=jax.random.normal(residual, batch.shape),
        data=jax.random.normal(data, batch.shape),
        chain_key=chain_key,
        indices=None if state.bank is None else bank.draw(bank_key, state.bank, n)[0],
    )


def iterate(
    config: HatEBMConfig, base: Base, draws: Draws, state: HatEBMState, images: Array
) -> tuple[HatEBMState, Metrics]:
    """One training iteration; see the module's docstring."""
    hat = bind(hat_network(config).apply, {"params": state.energy})
    samples = run_chains(
        draws.chain_key, hat, bind(base.apply, state.generator),
        draws.latent, config.chain.residual_start_scale * draws.residual, config.chain, config.temperature,
        draws.chain_noise,
    )  # fmt: skip
    data = images + config.data_noise * draws.data
    state, metrics = update_energy(config, state, data, samples.image)
    metrics |= _chain_metrics(samples) | watching.saturation(samples.image)
    metrics |= watching.gradient_norms(hat, data, samples.image)
    if state.bank is not None:
        assert draws.indices is not None
        pairs = bank.read(state.bank, draws.indices)
        metrics["bank_age"] = state.bank.ages[draws.indices].astype(jnp.float32).mean()
        state, metrics["generator_loss"] = update_generator(config, base, state, pairs["z"], pairs["image"])
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
    loss = contrast(on_data, on_samples, config.temperature, config.energy_regularization)
    return loss, {"energy_loss": loss, "energy_data": jnp.mean(on_data), "energy_sample": jnp.mean(on_samples)}


def update_energy(config: HatEBMConfig, state: HatEBMState, data: Array, samples: Array) -> tuple[HatEBMState, Metrics]:
    """One step of the hat on `energy_loss`, and of its moving average."""
    optimizer, _ = optimizers(config)
    gradients, metrics = jax.grad(functools.partial(energy_loss, config), has_aux=True)(state.energy, data, samples)
    updates, optimizer_state = optimizer.update(gradients, state.energy_optimizer, state.energy)
    energy = optax.apply_updates(state.energy, updates)
    average = optax.incremental_update(energy, state.energy_average, 1.0 - config.energy_average_decay)
    metrics["energy_gradient_norm"] = config.temperature * optax.tree.norm(gradients)
    return state._replace(energy=energy, energy_average=average, energy_optimizer=optimizer_state), metrics


def generator_loss(config: HatEBMConfig, base: Base, variables: Tree, z: Array, images: Array) -> Array:
    """``1000 mean (G(z) - x)²`` over batch, pixels and channels."""
    generated = base.apply(variables, z)
    return config.generator_loss_scale * jnp.square(generated - images).mean()


def update_generator(
    config: HatEBMConfig, base: Base, state: HatEBMState, z: Array, images: Array
) -> tuple[HatEBMState, Array]:
    """One step of the generator on `generator_loss`, and of its moving average; statistics stay."""
    _, optimizer = optimizers(config)
    params = state.generator["params"]
    loss_of = lambda p: generator_loss(config, base, {**state.generator, "params": p}, z, images)  # noqa: E731
    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, optimizer_state = optimizer.update(gradients, state.generator_optimizer, params)
    params = optax.apply_updates(params, updates)
    state = state._replace(
        generator={**state.generator, "params": params},
        generator_average=optax.incremental_update(
            params, state.generator_average, 1.0 - config.generator_average_decay
        ),
        generator_optimizer=optimizer_state,
    )
    return state, loss


def generator_of(config: HatEBMConfig, state: HatEBMState) -> Generator:
    """G of one latent, where it is the network of this configuration.

    Raises:
        ConfigError: the generator is another run's.
    """
    return networks_of(config, base_generator(config), state)[1]


def networks_of(config: HatEBMConfig, base: Base, state: HatEBMState) -> tuple[Energy, Generator]:
    """H of one image and G of one latent, with the weights that generate and score."""
    variables = state.generator
    if config.weights == "average" and config.application == "synthesis":
        variables = {**variables, "params": state.generator_average}
    return _hat(config, state), bind(base.apply, variables)


def _hat(config: HatEBMConfig, state: HatEBMState) -> Generator:
    params = state.energy if config.weights == "raw" else state.energy_average
    return bind(hat_network(config).apply, {"params": params})


def starts(config: HatEBMConfig, key: Array, n: int) -> tuple[Array, Array]:
    """Where ``n`` test chains start: z ~ N(0, I) and y, the i-th whatever n is."""

    def start(key: Array) -> tuple[Array, Array]:
        latent, residual = jax.random.split(key)
        return jax.random.normal(latent, _latent_shape(config)), jax.random.normal(residual, _image_shape(config))

    z, y = jax.vmap(start)(mcmc.chain_keys(key, n))
    return z, config.test_chain.residual_start_scale * y


def generate(config: HatEBMConfig, base: Base, key: Array, state: HatEBMState, n: int) -> Array:
    """``n`` samples ``G(z) + y`` at the end of test chains from z ~ N(0, I); with no steps, of the generator alone.

    Sample i does not depend on ``n``. Not clamped.
    """
    start_key, chain_key = jax.random.split(key)
    hat, generator = networks_of(config, base, state)
    z, y = starts(config, start_key, n)
    return run_chains(chain_key, hat, generator, z, y, config.test_chain, config.temperature).image


def energy(config: HatEBMConfig, state: HatEBMState, images: Array) -> Array:
    """``H(x)`` of each image [n], float32: U depends on (z, y) through x alone, so no z is inferred.

    The image density is ``exp(-H/T)``; H without T keeps the same order.
    """
    return cast(Array, _hat(config, state)(images))


def scores(config: HatEBMConfig, base: Base, key: Array, state: HatEBMState, images: Array) -> Metrics:
    """Held-out scores: mean H of samples, and of the same chains' starts, each minus mean H of data."""
    start_key, chain_key = jax.random.split(key)
    hat, generator = networks_of(config, base, state)
    z, y = starts(config, start_key, images.shape[0])
    mean = lambda x: energy(config, state, x).mean()  # noqa: E731
    ends = run_chains(chain_key, hat, generator, z, y, config.test_chain, config.temperature).image
    return {
        "energy_gap": mean(ends) - mean(images),
        "energy_gap_generator": mean(jax.vmap(generator)(z) + y) - mean(images),
    }


def build(config: HatEBMConfig, generator: Generator | None = None) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too.

    Args:
        config: the configuration.
        generator: the frozen generator of a refinement or retrofit: any pure function from one latent to one image
            [H, W, C]; see `base_generator`. By default the one that ``config.generator`` names.
    """
    config = getattr(config, "method", config)
    if generator is not None and config.application == "synthesis":
        raise ConfigError(
            "synthesis trains its own generator; to put a hat on a given one use application='refinement'"
        )
    base = base_generator(config, generator)

    def update(key: Array, state: HatEBMState, batch: Array) -> tuple[HatEBMState, Metrics]:
        return iterate(config, base, draw(config, key, state, batch), state, batch)

    return Method(
        init=functools.partial(initialize, config, base),
        update=update,
        generate=functools.partial(generate, config, base),
        energy=functools.partial(energy, config),
        reconstruct=None,
        scores=functools.partial(scores, config, base),
        parameters=lambda state: {
            "energy": state.energy,
            "generator": state.generator["params"] if isinstance(state.generator, Mapping) else state.generator,
        },
        evaluations_per_image=_evaluations(config),
        training_chain=training_chain(config),
    )


def training_chain(config: HatEBMConfig) -> TrainingChain:
    """ε on H at T, without ``τ‖y‖²``: the chain of the residual, taken on the image."""
    step_size = mcmc.from_noise_scale(config.chain.noise_scale, config.temperature)
    return TrainingChain(config.chain.num_steps, step_size, config.temperature, config.chain.max_displacement)


def _evaluations(config: HatEBMConfig) -> int:
    """Of the hat and the generator, for one sample; a gradient counts as one."""
    steps = config.test_chain.num_steps
    if config.application == "synthesis":
        return 1 + steps  # G once, then H at each step
    return 2 + 3 * steps  # at each step H for y, then H and G for the next z
