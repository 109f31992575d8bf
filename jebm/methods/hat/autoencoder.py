"""The deterministic autoencoder that Hat EBM retrofits (arXiv 2210.16486, released code), its first stage.

    c = E(x), on the sphere of radius sqrt(d);    x̂ = D(c + 0.02 ξ),    L = 1000 mean (x - x̂)²

It is no model of images: D of z ~ N(0, I), which has about the codes' norm but not their law, gives poor ones. Stage
two (`jebm.methods.hat.ebm`, application ``retrofit``) freezes D, drops E, and trains a hat over it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Energy, Generator, bind, squared_distance
from jebm.errors import ConfigError, check
from jebm.methods import accumulation
from jebm.methods.base import Method, Metrics, Score, Summary
from jebm.methods.hat import keras
from jebm.methods.hat.networks import IMAGE_SIZES, HatDecoder, HatEncoder, code_shape
from jebm.methods.shared import Trained, descend, prior_samples, train

__all__ = ["Draws", "HatAutoencoderConfig", "HatAutoencoderState", "build", "draw", "initialize", "iterate", "loss"]

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
        ema_decay: of the moving averages, which ``--weights ema`` selects.
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
    dtype: Literal["float32", "bfloat16"] = "float32"

    SUMMARY: ClassVar[Summary] = Summary(
        name="Autoencoder for a hat",
        paper="arXiv 2210.16486",
        progress=("loss", "gradient_norm"),
        curves={
            "loss": "Scaled squared error of the reconstruction.",
            "gradient_norm": "Norm of the gradient.",
        },
        scores={"loss": Score("Scaled squared error of the reconstruction of test images.", "lower")},
        headlines=("reconstruction_psnr", "reconstruction_error"),
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {"learning_rate": ("learning_rate",)}

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", width=">=1", output_scale=">0", latent_noise=">=0", loss_scale=">0",
            ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be one of {IMAGE_SIZES}")
        keras.check_steps("learning_rate", self.learning_rate)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)


class HatAutoencoderState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        encoder: E.
        decoder: D.
        batch_stats: the decoder's frozen statistics.
    """

    encoder: Trained
    decoder: Trained
    batch_stats: Tree


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        noise: standard normals of the codes' noise [B, H/2, W/2, 1].
    """

    noise: Array


def _networks(config: HatAutoencoderConfig) -> tuple[HatEncoder, HatDecoder]:
    dtype = jnp.dtype(config.dtype)
    decoder = HatDecoder(config.width, config.channels, config.output_scale, dtype)
    return HatEncoder(config.width, dtype=dtype), decoder


def initialize(config: HatAutoencoderConfig, key: Array, batch: Array) -> HatAutoencoderState:
    """A fresh state; ``batch`` is not used."""
    del batch
    encoder, decoder = _networks(config)
    encoder_key, decoder_key = jax.random.split(key)
    encoding = encoder.init(encoder_key, jnp.zeros(config.image_shape))
    decoding = decoder.init(decoder_key, jnp.zeros(code_shape(config.image_size)))
    optimizer = keras.adam(config.learning_rate)
    return HatAutoencoderState(
        train(encoding["params"], optimizer), train(decoding["params"], optimizer), decoding["batch_stats"]
    )


def loss(
    config: HatAutoencoderConfig, params: Tree, batch_stats: Tree, images: Array, noise: Array | float = 0.0
) -> Array:
    """``1000 mean (x - D(E(x) + 0.02 ξ))²`` with ``noise`` ξ, standard normals shaped as the codes; 0 in testing.

    ``params`` are ``{"encoder", "decoder"}``.
    """
    encoder, decoder = _networks(config)
    codes = cast(Array, encoder.apply({"params": params["encoder"]}, images)) + config.latent_noise * noise
    reconstructed = decoder.apply({"params": params["decoder"], "batch_stats": batch_stats}, codes)
    return config.loss_scale * jnp.square(images - cast(Array, reconstructed)).mean()


def draw(config: HatAutoencoderConfig, key: Array, state: HatAutoencoderState, images: Array) -> Draws:
    """The randomness of one iteration, from one key."""
    del state
    return Draws(jax.random.normal(key, (images.shape[0], *code_shape(config.image_size))))


def iterate(
    config: HatAutoencoderConfig, draws: Draws, state: HatAutoencoderState, images: Array, microbatches: int = 1
) -> tuple[HatAutoencoderState, Metrics]:
    """One Adam step of encoder and decoder on `loss`."""
    optimizer = keras.adam(config.learning_rate)

    def of_rows(params: Tree, images: Array, noise: Array) -> tuple[Array, Any]:
        value = loss(config, params, state.batch_stats, images, noise)
        return value, (value, ())

    gradients, value, _ = accumulation.gradients(of_rows, microbatches, _parameters(state), images, draws.noise)
    state = state._replace(
        encoder=descend(state.encoder, gradients["encoder"], optimizer, config.ema_decay),
        decoder=descend(state.decoder, gradients["decoder"], optimizer, config.ema_decay),
    )
    return state, {"loss": value, "gradient_norm": optax.tree.norm(gradients)}


def _parameters(state: HatAutoencoderState) -> Tree:
    return {"encoder": state.encoder.params, "decoder": state.decoder.params}


def scores(config: HatAutoencoderConfig, key: Array, state: HatAutoencoderState, images: Array) -> Metrics:
    """The loss on held-out images, without noise."""
    del key
    return {"loss": loss(config, _parameters(state), state.batch_stats, images)}


def _reconstruction_error(encoder: Callable[..., Any], decoder: Callable[..., Any], variables: Tree, x: Array) -> Array:
    return squared_distance(x, decoder(variables["decoder"], encoder(variables["encoder"], x)))


def build(config: HatAutoencoderConfig) -> Method:
    """The method of a configuration."""
    encode, decode = (network.apply for network in _networks(config))
    latent_shape = code_shape(config.image_size)
    error = functools.partial(_reconstruction_error, encode, decode)

    def variables(state: HatAutoencoderState) -> Tree:
        decoding = {"params": state.decoder.params, "batch_stats": state.batch_stats}
        return {"encoder": {"params": state.encoder.params}, "decoder": decoding}

    def update(
        key: Array, state: HatAutoencoderState, images: Array, microbatches: int = 1
    ) -> tuple[HatAutoencoderState, Metrics]:
        return iterate(config, draw(config, key, state, images), state, images, microbatches)

    def generator(state: HatAutoencoderState) -> Generator:
        """D of one code, which a retrofit freezes."""
        return bind(decode, variables(state)["decoder"])

    def generate(key: Array, state: HatAutoencoderState, n: int) -> Array:
        """``D(z)``, z ~ N(0, I), which a retrofit improves."""
        return cast(Array, generator(state)(prior_samples(key, n, latent_shape)))

    def reconstruct(key: Array, state: HatAutoencoderState, images: Array) -> Array:
        """``D(E(x))``; ``key`` is not used."""
        del key
        nets = variables(state)
        return cast(Array, decode(nets["decoder"], encode(nets["encoder"], images)))

    def energy(state: HatAutoencoderState) -> Energy:
        """``‖x - D(E(x))‖²`` of one image [ours]: the autoencoder's own outlier score."""
        return bind(error, variables(state))

    return Method(
        image_shape=config.image_shape,
        init=functools.partial(initialize, config),
        update=update,
        generate=generate,
        energy=energy,
        scores=functools.partial(scores, config),
        networks=lambda state: {"encoder": state.encoder, "decoder": state.decoder},
        reconstruct=reconstruct,
        generator=generator,
        latent_shape=latent_shape,
        weights="raw",
        whole_batch=None,
    )
