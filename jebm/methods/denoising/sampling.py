"""Two-stage sampling of Denoising-EBM: a semantic image, then its refinement by the texture energy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import mcmc
from jebm.methods.denoising import chains as chains
from jebm.methods.denoising.model import DenoisingEBMConfig, decode, noise_predictor, semantic_function, semantic_levels
from jebm.methods.denoising.state import DenoisingEBMState

__all__ = ["Synthesis", "evaluation_counts", "generate", "synthesize"]


class Synthesis(NamedTuple):
    """Samples and how they came about, [n, ...], in [-1, 1].

    Attributes:
        semantic: the semantic image: the end of a chain on pixels, with noise of about σ_J; or g(z). None in
            texture-only sampling.
        steps: refinement every so many steps [n, k, H, W, C]; or None.
        images: the samples.
    """

    semantic: Array | None
    steps: Array | None
    images: Array


def _stages(config: DenoisingEBMConfig) -> tuple[np.ndarray, np.ndarray]:
    """The levels of the two stages; either may be empty."""
    none, levels = np.zeros(0), semantic_levels(config)
    start = config.refinement.sigma_start
    if config.sampling == "semantic_only":
        return levels, none
    if config.sampling == "texture_only":
        return none, config.refinement.ladder(config.sigma_max, config.sigma_min, config.dimension)
    fine = config.refinement.ladder(start, config.sigma_min, config.dimension)
    return levels[levels >= start * (1.0 - 1e-9)], fine


def evaluation_counts(config: DenoisingEBMConfig) -> dict[str, int]:
    """Cost of one image: gradients of F, evaluations of u (or its gradients, with the full drift), and of g."""
    coarse, fine = _stages(config)
    return {
        "semantic": len(coarse) * config.chain.when_sampling().num_steps,
        "texture": config.refinement.evaluations(len(fine)) if len(fine) else 0,
        "decoder": int(config.semantic_chain == "latent" and len(coarse) > 0),
    }


def synthesize(
    config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, n: int, positions_every: int = 0
) -> Synthesis:
    """``n`` samples with averaged weights; sample i does not depend on ``n``.

    Args:
        config: its field ``sampling`` says which stages.
        key: a typed key.
        state: trained.
        n: how many; static.
        positions_every: n > 0 records every n-th step of the refinement.
    """
    coarse, fine = _stages(config)
    latent = config.semantic_chain == "latent"
    predictor = noise_predictor(config, state.ema)

    def one(key: Array) -> tuple[Array | None, Array | None, Array]:
        start_key, chain_key, noise_key, refine_key = jax.random.split(key, 4)
        noise = jax.random.normal(noise_key, config.image_shape)
        semantic, steps, x = None, None, 0.5 + config.sigma_max * noise
        if len(coarse):
            start = jax.random.normal(start_key, (config.latent_size,) if latent else config.image_shape)
            x = chains.anneal_semantic(
                chain_key, semantic_function(config, state.ema),
                start if latent else 0.5 + config.highest_semantic * start, coarse, config.chain,
                latent=latent, recovery=config.negatives == "recovery",
            )  # fmt: skip
            semantic = x = decode(config, state.ema, x) if latent else x
            if latent and len(fine):
                x = x + fine[0] * noise  # a chain on pixels has its noise already
        if len(fine):
            x, steps = chains.refine(refine_key, predictor, x, fine, config.refinement, positions_every=positions_every)
        return semantic, steps, jnp.clip(x, 0.0, 1.0)

    results = jax.vmap(one)(mcmc.chain_keys(key, n))
    return Synthesis(*jax.tree.map(lambda a: 2.0 * a - 1.0, results))


def generate(config: DenoisingEBMConfig, key: Array, state: DenoisingEBMState, n: int) -> Array:
    """``n`` samples; see `synthesize`."""
    return synthesize(config, key, state, n).images
