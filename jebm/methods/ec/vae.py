"""The energy-calibrated VAE (Luo et al., arXiv 2311.04071): one-pass samples, calibrated in training by an energy.

The networks: encoder ``q(z|x) = N(μ(x), diag exp(logvar(x)))``, deterministic decoder ``G(z)`` with prior N(0, I),
and an energy ``E(x) = f(x)/τ``. The problem, with x_c the calibrated sample of `calibration`:

    min   E_data[ ‖x - G(z)‖² + β KL(q(z|x) ‖ N(0, I)) ]     subject to     E ‖x_c - G(z)‖² ≤ ε

One iteration, in the released code's order: an Adam step of encoder and decoder on ``L_vae + λ C``; new negatives by
a second chain from the updated decoder, and an Adam step of the energy on ``(mean f(x) - mean f(x_neg))/τ``; the
dual step of λ with the C of this iteration.

Batch statistics: the decoder is applied three times an iteration in training mode (reconstruction, x_g, negatives),
each time normalised by its own batch and updating the running averages. Generation re-estimates them on prior
latents alone [ours], see `standing_generator`.

With ``calibrated_posterior`` the encoder has the constraint of `posterior` too [inferred]: its samples z_q should be
near fixed points of a short Langevin chain on the exact posterior. The chain uses the decoder under the statistics of
the reconstructed batch, held fixed, since the posterior of one image must not depend on the other images.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm import losses, sharding
from jebm.energy import Energy, Generator
from jebm.methods import diagnostics
from jebm.methods.base import Method, Metrics
from jebm.methods.ec import calibration, posterior
from jebm.methods.ec.energy_model import EnergyModel, NetworkState
from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.methods.ec.vae_config import ECVAEConfig
from jebm.methods.ec.vae_networks import Decoder, Encoder, standing_generator
from jebm.methods.ec.vae_networks_256 import Encoder256, Generator256
from jebm.methods.shared import Trained, descend, prior_samples, train, warm_up
from jebm.networks import spectral_norm
from jebm.networks.normalization import batch_statistics

__all__ = [
    "Draws", "ECVAEConfig", "ECVAEState", "Networks", "build", "draw", "energy_model", "generator_of", "initialize",
    "iterate", "networks",
]  # fmt: skip

Tree = Mapping[str, Any]


class Networks(NamedTuple):
    """Encoder and decoder, two Linen modules."""

    encoder: nn.Module
    decoder: nn.Module


class ECVAEState(NamedTuple):
    """The state of an EC-VAE in training.

    Attributes:
        vae: ``{"encoder", "decoder"}``, each a `Trained` with its moving average.
        batch_stats: their running statistics, by the same names.
        vae_spectral: singular vectors of their spectrally normalised kernels, by the same names.
        energy: parameters of f and singular vectors of its kernels.
        dual: λ, float32; with a calibrated posterior the pair λ and μ_z.
    """

    vae: dict[str, Trained]
    batch_stats: Any
    vae_spectral: Any
    energy: NetworkState
    dual: Any


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        posterior: standard normals [B, latent_size] of the reparameterisation.
        latent: prior latents [B, latent_size].
        calibration_key: of the chains that calibrate.
        negative_key: of the chains that make the energy's negatives.
        calibration_noise: recorded chain noise [B, K, H, W, C] instead of the key, or None.
        negative_noise: likewise.
        posterior_key: of the chains on the posterior; needed for a calibrated posterior only.
    """

    posterior: Array
    latent: Array
    calibration_key: Array
    negative_key: Array
    calibration_noise: Array | None = None
    negative_noise: Array | None = None
    posterior_key: Array | None = None


@functools.cache
def networks(config: ECVAEConfig) -> Networks:
    """Encoder and decoder of a configuration."""
    c, dtype = config, jnp.dtype(config.dtype)
    if c.image_size == 256:
        return Networks(
            Encoder256(width=c.encoder_width, latent_size=c.latent_size, dtype=dtype),
            Generator256(width=c.decoder_width, latent_size=c.latent_size, channels=c.channels, dtype=dtype),
        )
    encoder = Encoder(
        width=c.encoder_width, latent_size=c.latent_size, stem_stride=1 if c.image_size < 32 else 2,
        num_stages=3 if c.image_size == 8 else 4, dtype=dtype,
    )  # fmt: skip  # the last map stays at 2 px
    decoder = Decoder(
        width=c.decoder_width, latent_size=c.latent_size, image_size=c.image_size, channels=c.channels, dtype=dtype,
    )  # fmt: skip
    return Networks(encoder, decoder)


@functools.cache
def energy_model(config: ECVAEConfig) -> EnergyModel:
    """The energy of a configuration."""
    c, kind = config, MSResNet if config.energy_scales == 3 else ResNet
    network = kind(
        layers=c.energy_layers, head_width=c.energy_head_width, dtype=jnp.dtype(c.dtype), rematerialize=c.rematerialize
    )
    return EnergyModel(
        network, c.energy_learning_rate, c.b1, c.b2, c.spectral_norm, c.power_iterations, c.energy_regularization
    )


def _optimizer(config: ECVAEConfig) -> optax.GradientTransformation:
    return optax.adam(config.vae_learning_rate, b1=config.b1, b2=config.b2, eps=1e-8)


def initialize(config: ECVAEConfig, key: Array, batch: Array) -> ECVAEState:
    """A fresh state; ``batch`` is not read, since the configuration gives the shapes."""
    del batch
    nets, optimizer = networks(config), _optimizer(config)
    encoder_key, decoder_key, energy_key, encoder_vectors, decoder_vectors = jax.random.split(key, 5)
    image = jnp.zeros(config.image_shape)
    variables = {
        "encoder": nets.encoder.init(encoder_key, image[None], train=False),
        "decoder": nets.decoder.init(decoder_key, jnp.zeros((1, config.latent_size)), train=False),
    }
    params = {name: tree["params"] for name, tree in variables.items()}
    spectral = {"encoder": {}, "decoder": spectral_norm.init(decoder_vectors, params["decoder"])}
    if config.image_size == 256:  # the released 256 px encoder normalises all but its two heads, the 32 px one nothing
        spectral["encoder"] = spectral_norm.init(encoder_vectors, params["encoder"], exclude=("mu", "logvar"))
    dual = calibration.dual_start(config.calibration)
    return ECVAEState(
        vae={name: train(tree, optimizer) for name, tree in params.items()},
        batch_stats={name: tree["batch_stats"] for name, tree in variables.items()},
        vae_spectral=spectral,
        energy=energy_model(config).init(energy_key, image),
        dual=(dual, calibration.dual_start(config.posterior)) if config.calibrated_posterior else dual,
    )


# --- training ---------------------------------------------------------------------------------------------------------


def draw(config: ECVAEConfig, key: Array, batch_size: int) -> Draws:
    """The randomness of one iteration, from one key."""
    posterior_draw, latent, calibration_key, negative_key = jax.random.split(key, 4)
    shape = (batch_size, config.latent_size)
    normal = lambda key: sharding.constrain_batch(jax.random.normal(key, shape))  # noqa: E731
    posterior_key = jax.random.fold_in(key, 4)
    return Draws(normal(posterior_draw), normal(latent), calibration_key, negative_key, posterior_key=posterior_key)


def iterate(config: ECVAEConfig, draws: Draws, state: ECVAEState, images: Array) -> tuple[ECVAEState, Metrics]:
    """One training iteration (primal step, energy step, dual step); see the module's docstring."""
    nets, model, settings = networks(config), energy_model(config), config.calibration
    dimension = images[0].size
    duals: tuple[Any, Any] = state.dual if config.calibrated_posterior else (state.dual, None)
    dual, posterior_dual = duals

    # primal step: reconstruction and KL on data, calibration on generated samples
    head, energy_state = model.chain_head(model.refresh(state.energy), settings.num_steps)

    def vae_loss(vae: Tree) -> tuple[Array, Any]:
        stats, spectral = state.batch_stats, state.vae_spectral
        (mu, logvar), stats, spectral = _encode(nets, vae, stats, spectral, images)
        z = mu + jnp.exp(0.5 * logvar) * draws.posterior
        reconstructed, stats, spectral = _decode(nets, vae, stats, spectral, z)
        terms = {
            "reconstruction": jnp.mean(jax.vmap(losses.get(config.reconstruction))(reconstructed, images)),
            "kl": kl_divergence(mu, logvar),
        }
        total = terms["reconstruction"] + config.kl_weight * terms["kl"]
        if config.calibrated_posterior:
            decoder = _decoder_of_batch(nets, vae, state.batch_stats, stats, spectral)
            terms["posterior_calibration"] = _posterior_distance(config, draws, decoder, images, z)
            total += posterior_dual * terms["posterior_calibration"]
        generated, stats, spectral = _decode(nets, vae, stats, spectral, draws.latent)
        calibrated = calibration.calibrate(draws.calibration_key, head, generated, settings, draws.calibration_noise)
        terms["calibration"] = calibration.calibration_loss(calibrated, generated)
        total += dual * terms["calibration"]
        return total, (terms, stats, spectral, calibrated)

    params = {name: network.params for name, network in state.vae.items()}
    gradients, (terms, stats, spectral, calibrated) = jax.grad(vae_loss, has_aux=True)(params)
    decay = warm_up(config.ema_decay, optax.tree.get(state.vae["decoder"].optimizer, "count"))
    vae = {name: descend(network, gradients[name], _optimizer(config), decay) for name, network in state.vae.items()}

    # energy step: data against samples of a second chain from the updated decoder
    if config.reuse_negatives:
        negatives = calibrated
    else:
        updated = {name: network.params for name, network in vae.items()}
        generated, stats, spectral = _decode(nets, updated, stats, spectral, draws.latent)
        head, energy_state = model.chain_head(energy_state, settings.num_steps)
        negatives = calibration.calibrate(draws.negative_key, head, generated, settings, draws.negative_noise)
    energy_state, metrics = model.step(energy_state, images, negatives, settings.temperature)

    dual = calibration.dual_step(dual, terms["calibration"], settings, dimension)
    if config.calibrated_posterior:
        distance = terms["posterior_calibration"]
        posterior_dual = calibration.dual_step(posterior_dual, distance, config.posterior, config.latent_size)
        terms["posterior_dual"] = posterior_dual
    new_state = ECVAEState(
        vae=vae,
        batch_stats=stats,
        vae_spectral=spectral,
        energy=energy_state,
        dual=(dual, posterior_dual) if config.calibrated_posterior else dual,
    )
    metrics |= terms | {
        "dual": dual,
        "vae_gradient_norm": optax.tree.norm(gradients),
        "chain_displacement": jnp.sqrt(terms["calibration"] / dimension),
    }
    metrics |= diagnostics.gradient_norms(energies.at_step(head, jnp.zeros((), jnp.int32)), images, negatives)
    metrics |= diagnostics.saturation(negatives)
    return new_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def update(config: ECVAEConfig, key: Array, state: ECVAEState, images: Array) -> tuple[ECVAEState, Metrics]:
    """One training iteration from one key."""
    return iterate(config, draw(config, key, images.shape[0]), state, images)


def kl_divergence(mu: Array, logvar: Array) -> Array:
    """``KL(N(μ, diag exp(logvar)) ‖ N(0, I))``, summed over latents, averaged over the batch."""
    return -0.5 * jnp.sum(1.0 + logvar - jnp.square(mu) - jnp.exp(logvar)) / mu.shape[0]


def _encode(
    nets: Networks, vae: Tree, stats: Tree, spectral: Tree, images: Array
) -> tuple[tuple[Array, Array], Tree, Tree]:
    """A training-mode pass of the encoder, as `_decode`."""
    if spectral["encoder"]:
        spectral = {**spectral, "encoder": spectral_norm.iterate(vae["encoder"], spectral["encoder"])}
    variables = {"params": _normalized(vae, spectral, "encoder"), "batch_stats": stats["encoder"]}
    gaussian, updated = nets.encoder.apply(variables, images, train=True, mutable=["batch_stats"])
    return gaussian, {**stats, "encoder": updated["batch_stats"]}, spectral


def _decode(nets: Networks, vae: Tree, stats: Tree, spectral: Tree, z: Array) -> tuple[Array, Tree, Tree]:
    """A training-mode pass of the decoder: one power iteration first, batch statistics, running averages updated."""
    spectral = {**spectral, "decoder": spectral_norm.iterate(vae["decoder"], spectral["decoder"])}
    variables = {"params": _normalized(vae, spectral, "decoder"), "batch_stats": stats["decoder"]}
    images, updated = nets.decoder.apply(variables, z, train=True, mutable=["batch_stats"])
    return images, {**stats, "decoder": updated["batch_stats"]}, spectral


def _normalized(vae: Tree, spectral: Tree, name: str) -> Tree:
    return spectral_norm.normalize(vae[name], spectral[name]) if spectral[name] else vae[name]


def _posterior_distance(config: ECVAEConfig, draws: Draws, decoder: Generator, images: Array, z: Array) -> Array:
    assert draws.posterior_key is not None
    variance = 0.5 * config.kl_weight
    calibrated = posterior.calibrate_posterior(draws.posterior_key, decoder, images, z, variance, config.posterior)
    return calibration.calibration_loss(calibrated, z)


def _decoder_of_batch(nets: Networks, vae: Tree, before: Tree, after: Tree, spectral: Tree) -> Generator:
    """The decoder of one latent under the statistics of the batch between two running averages."""
    stats = batch_statistics(before["decoder"], after["decoder"])
    return energies.bind(nets.decoder.apply, {"params": _normalized(vae, spectral, "decoder"), "batch_stats": stats})


# --- after training ---------------------------------------------------------------------------------------------------


def generator_of(config: ECVAEConfig, state: ECVAEState) -> Generator:
    """The decoder that generates, with averaged weights; see `standing_generator`."""
    params = _normalized(_averages(state), state.vae_spectral, "decoder")
    return standing_generator(networks(config).decoder, params, state.batch_stats["decoder"], config.latent_size)


def _averages(state: ECVAEState) -> Tree:
    return {name: network.ema for name, network in state.vae.items()}


def generate(config: ECVAEConfig, key: Array, state: ECVAEState, n: int) -> Array:
    """``n`` samples G(z), z ~ N(0, I): one pass of the decoder, no chain."""
    return generator_of(config, state)(prior_samples(key, n, (config.latent_size,)))


def reconstruct(config: ECVAEConfig, key: Array, state: ECVAEState, images: Array) -> Array:
    """``G(μ(x))`` with averaged weights and running batch statistics; ``key`` is not used."""
    del key
    (mu, _), decode = _posterior(config, state, images)
    return decode(mu)


def energy(config: ECVAEConfig, state: ECVAEState) -> Energy:
    """``E(x) = f(x)/τ`` of one image."""
    return energies.temper(energy_model(config).head(state.energy), config.calibration.temperature)


def scores(config: ECVAEConfig, key: Array, state: ECVAEState, images: Array) -> Metrics:
    """Held-out scores: those of `calibration_scores` on samples that generate, and three of the VAE.

    ``energy_gap``: mean f of generated samples minus mean f of data; ``kl``; and, if the loss is that of Gaussian
    errors, ``elbo``: the bound at σ² = β/2 in nats per image, with one latent each.
    """
    chain_key, latent_key = jax.random.split(key)
    head = energy_model(config).head(state.energy)
    generated = generate(config, latent_key, state, images.shape[0])
    (mu, logvar), decode = _posterior(config, state, images)
    z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.fold_in(key, 2), mu.shape)
    bound = posterior.evidence_bound(images, decode(z), mu, logvar, 0.5 * config.kl_weight)
    return (
        calibration.calibration_scores(chain_key, head, generated, config.calibration)
        | {
            "energy_gap": jnp.mean(head(generated)) - jnp.mean(head(images)),
            "kl": kl_divergence(mu, logvar),
        }
        | ({"elbo": jnp.mean(bound)} if config.gaussian else {})
    )


def _posterior(config: ECVAEConfig, state: ECVAEState, images: Array) -> tuple[tuple[Array, Array], Generator]:
    """Means and log-variances of q(z|x), and the decoder, both under running statistics."""
    nets, averages = networks(config), _averages(state)

    def apply(name: str, module: nn.Module, x: Array) -> Any:
        variables = {
            "params": _normalized(averages, state.vae_spectral, name), "batch_stats": state.batch_stats[name],
        }  # fmt: skip
        return module.apply(variables, x, train=False)

    return apply("encoder", nets.encoder, images), lambda z: apply("decoder", nets.decoder, z)


def build(config: ECVAEConfig) -> Method:
    """The method of a configuration."""
    bind = lambda function: functools.partial(function, config)  # noqa: E731
    return Method(
        image_shape=config.image_shape,
        init=bind(initialize),
        update=bind(update),
        generate=bind(generate),
        energy=bind(energy),
        scores=bind(scores),
        networks=lambda state: {**state.vae, "energy": state.energy.trained},
        reconstruct=bind(reconstruct),
        generator=bind(generator_of),
        latent_shape=(config.latent_size,),
        temperature=config.calibration.temperature,
        chain=calibration.chain(config.calibration),
        whole_batch="whose networks normalise by the statistics of the whole batch",
    )
