"""Every family as the prior of a restoration, fresh and narrow."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.config import load_file, override
from jebm.restoration import RestorationConfig, average_pooling, restore
from jebm.restoration.tasks import prior_of
from jebm.runs import Run, RunDirectory

CONFIGS = pathlib.Path(__file__).parents[1] / "configs/digits"
NARROW = {
    "ec_flow": ["method.width=4", "method.num_steps=1", "method.num_scales=1"],
    "ec_gan": ["method.generator_width=2"],
    "hat_synthesis": ["method.energy_width=4", "method.generator_width=4", "method.bank_size=16"],
    "hat_autoencoder": [],
    "denoising_ebm": ["method.width=4", "method.bank_size=16"],
    "denoising_ebm with pixel chains": ["method.width=4", "method.bank_size=16", "method.semantic_chain=pixel"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_restoration_with(name):
    config = override(load_file(CONFIGS / f"{name.split()[0]}.py"), NARROW[name])
    method = methods.build(config)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)), jnp.float32)
    state = jax.jit(method.init)(jax.random.key(0), images)
    prior = prior_of(Run(RunDirectory(pathlib.Path("nowhere")), config, method, state, 0, {}))
    assert (prior.generator is None) == ("pixel" in name)
    operator = average_pooling(8, 2)
    y = jax.vmap(operator.apply)(images[:2])
    settings = RestorationConfig(restarts=2, descent_steps=2, num_steps=2, refinement_steps=2)
    restored = restore(jax.random.key(1), prior, operator, y, settings)
    assert float(restored.consistency.max()) < 1e-4
    assert float(jnp.abs(restored.samples[:, 0] - restored.samples[:, 1]).max()) > 1e-7  # restarts are not copies
    moved = jnp.abs(restored.samples[:, 0] - jax.vmap(operator.pseudo_inverse)(y))
    assert 1e-6 < float(moved.max()) < 1e3
