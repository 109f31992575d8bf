"""Every family as small as it gets: 8-pixel grey images, networks of a few channels, chains of two steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jebm import methods
from jebm.methods import ChainConfig
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from jebm.methods.ec.calibration import CalibrationConfig

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)) / 127.5 - 1, jnp.float32)

_SHAPE = {"image_size": 8, "channels": 1}
_CALIBRATION = CalibrationConfig(num_steps=2, dual_initial=5.0)

CONFIGS = {
    "ebm": methods.EBMConfig(
        **_SHAPE, width=2, num_halvings=2, num_steps=2, generate_steps=2, bank_size=8, learning_rate=1e-2
    ),
    "ec_vae": methods.ECVAEConfig(
        **_SHAPE, latent_size=4, encoder_width=2, decoder_width=2, energy_layers=((4, 1),), energy_head_width=4,
        energy_scales=1, calibration=_CALIBRATION,
    ),
    "ec_flow": methods.ECFlowConfig(
        **_SHAPE, num_scales=1, num_steps=1, width=4, energy_layers=((4, 1),), energy_head_width=4,
        calibration=_CALIBRATION,
    ),
    "ec_gan": methods.ECGANConfig(
        **_SHAPE, latent_size=3, generator_width=2, discriminator_layers=((4, 1),), energy_layers=((4, 1),),
        head_width=4, calibration=_CALIBRATION,
    ),
    "energy_matching": methods.EnergyMatchingConfig(
        **_SHAPE, width=2, num_halvings=2, num_blocks=1, head_width=4, warmup_steps=0, step_size=0.6, num_steps=2,
        generate_steps=2, learning_rate=1e-2, contrastive_weight=0.1,
    ),
    "hat_ebm": methods.HatEBMConfig(
        **_SHAPE, latent_size=4, energy_width=4, generator_width=4, chain=ChainConfig(num_steps=2),
        test_chain=ChainConfig(num_steps=2), bank_size=8,
    ),
    "hat_autoencoder": methods.HatAutoencoderConfig(**_SHAPE, width=4),
    "denoising_ebm": methods.DenoisingEBMConfig(
        **_SHAPE, width=4, multipliers=(1, 2), num_blocks=1, latent_size=6, latent_width=4, head_outputs=3,
        head_width=8, semantic_levels=3, chain=SemanticChainConfig(num_steps=2),
        refinement=RefinementConfig(num_levels=2, steps_per_level=2), bank_size=4,
    ),
}  # fmt: skip


def away_from_the_start(tree):
    """Every number of a tree moved, so that nothing is 0 or 1 as layers begin."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [a + 0.1 * jax.random.normal(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, moved)


def variant(name, **changes):
    """A configuration with other settings."""
    return dataclasses.replace(CONFIGS[name], **changes)
