"""The deterministic autoencoder that Hat EBM retrofits (arXiv 2210.16486, released code), its first stage.

    c = E(x), on the sphere of radius sqrt(d);    x̂ = D(c + 0.02 ξ),    L = 1000 mean (x - x̂)²

It is no model of images: D of z ~ N(0, I), which has about the codes' norm but not their law, gives poor ones. Stage
two (`hat_ebm`, application ``retrofit``) freezes D, forgets E, and trains a hat over it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import mcmc
from jebm.energy import Generator, bind
from jebm.errors import ConfigError, check
from jebm.methods.base import Method, Metrics
from jebm.methods.hat import keras
from jebm.methods.hat.networks import IMAGE_SIZES, HatDecoder, HatEncoder, code_shape

__all__ = ["HatAutoencoderConfig", "HatAutoencoderState", "build", "decoder", "initialize", "iterate", "loss"]

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class HatAutoencoderConfig:
    """The autoencoder; defaults are the released ones at 32x32x3 (8,417,284 parameters).

    Attributes:
        image_size: 8, 16, 32, 64 or 128; the authors' is 32. Codes have half of it.
        channels: of the images.
        width: of encoder and decoder.
        output_scale: the decoder's images are ``output_scale * tanh``.
        latent_noise: standard deviation of the noise on codes in training.
        loss_scale: factor of the mean squared error.
        learning_rate: rows (learning rate, first update), of Adam.
        ema_decay: of the moving average, kept beside as in the released code.
        weights: which weights generate and reconstruct: ``"raw"``, or their ``"average"``.
        dtype: in which the networks compute; parameters and codes stay float32.
    """

    image_size: int = 32
    channels: int = 3
    width: int = 256
    output_scale: float = 2.0
    latent_noise: float = 0.02
    loss_scale: float = 1000.0
    learning_rate: tuple[tuple[float, int], ...] = ((1e-4, 0),)
    ema_decay: float = 0.9999
    weights: Literal["raw", "average"] = "raw"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", width=">=1", output_scale=">0", latent_noise=">=0", loss_scale=">0",
            ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be one of {IMAGE_SIZES}")
        keras.check_steps("learning_rate", self.learning_rate)


class HatAutoencoderState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        params: ``{"encoder", "decoder"}``.
        batch_stats: the decoder's frozen statistics.
        average: moving average of ``params``.
        optimizer: Adam's state.
    """

    params: Tree
    batch_stats: Tree
    average: Tree
    optimizer: Any


def _networks(config: HatAutoencoderConfig) -> tuple[HatEncoder, HatDecoder]:
    dtype = jnp.dtype(config.dtype)
    decoder = HatDecoder(config.width, config.channels, config.output_scale, dtype)
    return HatEncoder(config.width, dtype=dtype), decoder


def initialize(config: HatAutoencoderConfig, key: Array, batch: Array) -> HatAutoencoderState:
    """A fresh state; ``batch`` gives the image shape only.

    Raises:
        ConfigError: data of another shape than the configuration's.
    """
    shape = (config.image_size, config.image_size, config.channels)
    if batch.shape[1:] != shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects {shape}: "
            "set method.image_size and method.channels, or another data.source"
        )
    encoder, decoder = _networks(config)
    encoder_key, decoder_key = jax.random.split(key)
    decoding = decoder.init(decoder_key, jnp.zeros(code_shape(config.image_size)))
    params = {"encoder": encoder.init(encoder_key, jnp.zeros(shape))["params"], "decoder": decoding["params"]}
    average = jax.tree.map(jnp.array, params)
    optimizer = keras.adam(config.learning_rate)
    return HatAutoencoderState(params, decoding["batch_stats"], average, optimizer.init(params))


def loss(
    config: HatAutoencoderConfig, params: Tree, batch_stats: Tree, images: Array, noise: Array | float = 0.0
) -> Array:
    """``1000 mean (x - D(E(x) + 0.02 ξ))²`` with ``noise`` ξ, standard normals as the codes; without, for testing."""
    encoder, decoder = _networks(config)
    codes = cast(Array, encoder.apply({"params": params["encoder"]}, images)) + config.latent_noise * noise
    reconstructed = decoder.apply({"params": params["decoder"], "batch_stats": batch_stats}, codes)
    return config.loss_scale * jnp.square(images - cast(Array, reconstructed)).mean()


def iterate(
    config: HatAutoencoderConfig, noise: Array, state: HatAutoencoderState, images: Array
) -> tuple[HatAutoencoderState, Metrics]:
    """One Adam step of encoder and decoder on `loss`."""
    value, gradients = jax.value_and_grad(lambda p: loss(config, p, state.batch_stats, images, noise))(state.params)
    updates, optimizer = keras.adam(config.learning_rate).update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optax.incremental_update(params, state.average, 1.0 - config.ema_decay)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
    return HatAutoencoderState(params, state.batch_stats, average, optimizer), metrics


def _weights(config: HatAutoencoderConfig, state: HatAutoencoderState) -> Tree:
    return state.params if config.weights == "raw" else state.average


def decoder(config: HatAutoencoderConfig, state: HatAutoencoderState) -> Generator:
    """D, from one code to one image (or many, with a leading axis): what a retrofit freezes."""
    variables = {"params": _weights(config, state)["decoder"], "batch_stats": state.batch_stats}
    return bind(_networks(config)[1].apply, variables)


def generate(config: HatAutoencoderConfig, key: Array, state: HatAutoencoderState, n: int) -> Array:
    """``D(z)``, z ~ N(0, I): what a retrofit has to improve."""
    shape = code_shape(config.image_size)
    return decoder(config, state)(jax.vmap(lambda k: jax.random.normal(k, shape))(mcmc.chain_keys(key, n)))


def reconstruct(config: HatAutoencoderConfig, key: Array, state: HatAutoencoderState, images: Array) -> Array:
    """``D(E(x))``; ``key`` is not used."""
    del key
    codes = _networks(config)[0].apply({"params": _weights(config, state)["encoder"]}, images)
    return decoder(config, state)(codes)


def energy(config: HatAutoencoderConfig, state: HatAutoencoderState, images: Array) -> Array:
    """``‖x - D(E(x))‖²`` of each image [n] [ours]: what an autoencoder alone has to tell outliers by."""
    return jnp.square(images - reconstruct(config, jax.random.key(0), state, images)).sum((1, 2, 3))


def scores(config: HatAutoencoderConfig, key: Array, state: HatAutoencoderState, images: Array) -> Metrics:
    """The loss on held-out images, without noise."""
    del key
    return {"loss": loss(config, _weights(config, state), state.batch_stats, images)}


def build(config: HatAutoencoderConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)

    def update(key: Array, state: HatAutoencoderState, batch: Array) -> tuple[HatAutoencoderState, Metrics]:
        noise = jax.random.normal(key, (batch.shape[0], *code_shape(config.image_size)))
        return iterate(config, noise, state, batch)

    return Method(
        init=functools.partial(initialize, config),
        update=update,
        generate=functools.partial(generate, config),
        energy=functools.partial(energy, config),
        reconstruct=functools.partial(reconstruct, config),
        scores=functools.partial(scores, config),
        parameters=lambda state: dict(state.params),
    )
