"""The probability flow of the second stage, and ladders that reach beyond σ = 1."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.errors import ConfigError
from jebm.methods import DenoisingEBMConfig
from jebm.methods.denoising.chains import RefinementConfig, refine
from jebm.methods.denoising.energies import flow_ladder
from jebm.methods.denoising.model import initial_parameters
from jebm.methods.denoising.sampling import evaluation_counts, synthesize

MEAN, DEVIATION = jnp.array([0.2, 0.7, 0.5]), jnp.array([0.05, 0.3, 1.5])


def exact(x, sigma):
    """``u = σ ∇log p_σ`` of N(m, diag s²) noised by σ."""
    return -sigma * (x - MEAN) / (DEVIATION**2 + sigma**2)


def flowed(num_levels, start, sigma_max=40.0, sigma_min=0.01):
    config = RefinementConfig(solver="heun", num_levels=num_levels)
    ladder = config.ladder(sigma_max, sigma_min, 3)
    assert len(ladder) == num_levels
    return jax.vmap(lambda x: refine(jax.random.key(0), exact, x, ladder, config)[0])(start)


def test_flow_of_a_gaussian_is_its_affine_map():
    """From σ to 0 the flow takes ``m + a`` to ``m + s/√(s² + σ²) a``; the last denoising step to ``s²/(s² + σ²)``."""
    start = jnp.array([[30.0, -20.0, 5.0], [-1.0, 60.0, 0.0]])
    low = np.sqrt((DEVIATION**2 + 0.01**2) / (DEVIATION**2 + 40.0**2)) * DEVIATION**2 / (DEVIATION**2 + 0.01**2)
    mean = MEAN[None]
    expected = mean + low[None] * (start - mean)
    errors = [np.abs(flowed(n, start) - expected).max() for n in (20, 40, 80, 160)]
    assert errors[-1] < 1e-3 * np.abs(expected - mean).max()
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert (ratios[:2] > 3.0).all(), ratios  # of the second order: four times nearer with twice the steps


def test_levels_of_the_flow():
    """Equation 5 of arXiv 2206.00364, by hand for three levels."""
    ladder = flow_ladder(50.0, 0.01, 3)
    middle = (0.5 * (50.0 ** (1 / 7) + 0.01 ** (1 / 7))) ** 7
    np.testing.assert_allclose(ladder, [50.0, middle, 0.01], rtol=1e-12)


def test_what_the_flow_costs_and_records():
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return exact(x, sigma)

    config = RefinementConfig(solver="heun", num_levels=7)
    ladder = config.ladder(1.0, 0.1, 3)
    _, steps = refine(jax.random.key(0), counted, jnp.ones(3), ladder, config, positions_every=2)
    jax.effects_barrier()
    assert len(calls) == config.evaluations(7) == 13
    assert steps.shape == (3, 3)
    np.testing.assert_allclose(min(calls), 0.1, rtol=1e-6)


TINY = DenoisingEBMConfig(
    image_size=8, channels=1, width=4, multipliers=(1,), num_blocks=1, latent_size=4, latent_width=4, head_outputs=4,
    head_width=8, sigma_max=50.0, semantic_sigma_max=1.0, refinement=RefinementConfig(solver="heun", num_levels=4),
)  # fmt: skip


def test_ladders_of_two_ranges():
    """The semantic ladder keeps its own top; texture-only sampling starts from the whole ladder's."""
    assert evaluation_counts(TINY)["texture"] == 7
    texture_only = dataclasses.replace(TINY, sampling="texture_only")

    @jax.jit
    def draw(key):
        state = types.SimpleNamespace(ema=initial_parameters(TINY, key))
        return synthesize(texture_only, key, state, 2)

    made = draw(jax.random.key(2))
    assert made.images.shape == (2, 8, 8, 1)
    assert np.isfinite(made.images).all()
    assert made.semantic is None


def test_first_layer_sees_loud_images_at_the_scale_of_sigma_one():
    """With the level's features held the same, ``u`` of (σ, 0.5 + σ n) reads (2x - 1)/σ = 2 n."""
    from jebm.methods.denoising.networks import DownPath

    path = DownPath(4, (1,), 1, jnp.float32)
    noise = jax.random.normal(jax.random.key(0), (8, 8, 1))
    params = path.init(jax.random.key(1), noise, jnp.float32(1.0))
    level = jax.tree.map(jnp.zeros_like, params["params"]["level"])
    params = {"params": params["params"] | {"level": level}}
    one, loud = (path.apply(params, 0.5 + s * noise, jnp.float32(s))[0] for s in (1.0, 50.0))
    np.testing.assert_allclose(one, loud, rtol=1e-5, atol=1e-5)
    quiet, half = (path.apply(params, 0.5 + noise, jnp.float32(s))[0] for s in (0.1, 1.0))
    np.testing.assert_allclose(quiet, half, rtol=1e-6, atol=1e-6)  # up to σ = 1 nothing is rescaled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantic_sigma_max": 60.0}, "semantic_sigma_max=60.0 is above sigma_max=50.0"),
        ({"semantic_sigma_max": 0.1}, "refinement.sigma_start=0.2 is above the highest semantic level, 0.1"),
    ],
)
def test_wrong_ladders(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


def test_flow_has_no_full_drift():
    with pytest.raises(ConfigError, match="drift='full' belongs to solver='langevin'"):
        RefinementConfig(solver="heun", drift="full")
