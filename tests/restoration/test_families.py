"""Fresh narrow families as the prior of a restoration; `test_lifecycle` restores with a run of each."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

from jebm import methods
from jebm.config import load_file, override
from jebm.restoration import RestorationConfig, average_pooling, restore
from jebm.restoration.run_prior import prior as prior_of
from jebm.runs.directory import RunDirectory
from jebm.runs.run import Run

CONFIGS = ROOT / "configs/digits"
NARROW = {
    "ec_gan": ["method.generator_width=2"],
    "hat_synthesis": ["method.energy_width=4", "method.generator_width=4", "method.bank_size=16"],
    "denoising_ebm": ["method.width=4", "method.bank_size=16", "method.semantic_chain=pixel"],
}


def fresh(name):
    """A run of that family without training, and images."""
    config = override(load_file(CONFIGS / f"{name}.py"), NARROW[name])
    method = methods.build(config)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)), jnp.float32)
    state = jax.jit(method.init)(jax.random.key(0), images)
    return Run(RunDirectory(pathlib.Path("nowhere")), config, method, state, 0, {}), images


@pytest.mark.parametrize("name", ["ec_gan", "hat_synthesis"])
def test_the_energies_of_a_prior(name):
    """The latent chain's has deviation 1 over generated images, the refinement's is that of the density."""
    run, images = fresh(name)
    prior = prior_of(run)
    energies = np.asarray(jax.vmap(run.method.energy(run.state))(images))
    native = jax.jit(jax.vmap(prior.refinement_energy))(images)
    np.testing.assert_allclose(native, energies, rtol=1e-4, atol=1e-4 * np.std(energies))
    z = jax.random.normal(jax.random.key(1), (512, *prior.latent.shape))
    of_generated = jax.jit(jax.vmap(lambda z: prior.energy(prior.generator(z))))(z)
    assert 0.6 < np.std(of_generated) < 1.6  # 64 others set the scale
    scaled = np.asarray(jax.jit(jax.vmap(prior.energy))(images))
    standard = lambda e: (e - e[0]) / np.std(e)  # noqa: E731
    np.testing.assert_allclose(standard(scaled), standard(energies), atol=1e-2)


@pytest.mark.slow
def test_a_prior_without_a_generator():
    run, images = fresh("denoising_ebm")
    prior = prior_of(run)
    assert prior.generator is None
    operator = average_pooling(8, 2)
    y = jax.vmap(operator.apply)(images[:2])
    restored = restore(jax.random.key(1), prior, operator, y, RestorationConfig(restarts=2, refinement_steps=2))
    assert float(restored.consistency.max()) < 1e-4
