"""Latent chains of the EC-VAE release: their formulas, and parity with numbers from the authors' own code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import group, head_of

import jebm
from jebm import energy
from jebm.convert.arrays import from_flat
from jebm.methods.ec.vae_networks import Decoder
from jebm.networks import spectral_norm
from released import latent_chains

SEED = 0

# --- the formulas, in numpy: a quadratic head over a linear generator -----------------------------------------------

MATRIX = np.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]])
CURVATURE, SLOPE = np.diag([2.0, 0.5, 1.0]), np.array([0.3, -0.2, 0.1])


def head(x):
    return 0.5 * x @ jnp.asarray(CURVATURE) @ x + jnp.asarray(SLOPE) @ x


def plain_head(x):
    return 0.5 * x @ CURVATURE @ x + SLOPE @ x, CURVATURE @ x + SLOPE


linear = functools.partial(jnp.matmul, jnp.asarray(MATRIX, jnp.float32))


def test_the_lookahead_chain_by_its_formula():
    step, tau, z = 0.09, 0.7, np.array([0.4, -1.1])
    noise = np.random.default_rng(SEED).standard_normal((3, 2))
    end, energies = jax.jit(lambda z, noise: latent_chains.lookahead_chain(head, linear, z, noise, step, tau))(z, noise)
    delta, expected = np.zeros(3), []
    for xi in noise:
        f, slope = plain_head(MATRIX @ z + delta)
        expected.append(f / tau)
        z = z - 0.5 * step * MATRIX.T @ slope / tau + np.sqrt(step) * xi
        delta = -0.5 * step * slope / tau
    np.testing.assert_allclose(end, z, rtol=1e-4)
    np.testing.assert_allclose(energies, expected, rtol=1e-4)


def test_the_joint_latent_chain_by_its_formula():
    (step_x, step_z), tau, x, z = (0.05, 0.2), 0.7, np.array([0.5, -0.3, 0.9]), np.array([0.4, -1.1])
    rng = np.random.default_rng(SEED)
    noise = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    chain = jax.jit(lambda x, z, noise: latent_chains.joint_chain(head, linear, x, z, noise, (step_x, step_z), tau))
    end_x, end_z, energies = chain(x, z, noise)
    expected = []
    for xi_x, xi_z in zip(*noise, strict=True):
        x = x + np.sqrt(step_x) * xi_x
        f, slope = plain_head(x)
        expected.append(f / tau)
        x = x - 0.5 * step_x * slope / tau
        z = z - 0.5 * step_z * MATRIX.T @ slope / tau + np.sqrt(step_z) * xi_z
    np.testing.assert_allclose(end_x, x, rtol=1e-4)
    np.testing.assert_allclose(end_z, z, rtol=1e-4)
    np.testing.assert_allclose(energies, expected, rtol=1e-4)


def test_latent_chains_refuse_half_precision():
    z, noise = jnp.zeros(2, jnp.bfloat16), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="got bfloat16"):
        latent_chains.lookahead_chain(jebm.energy.standard_normal, lambda z: z, z, noise, 0.1, 1.0)
    with pytest.raises(ValueError, match="got bfloat16"):
        latent_chains.joint_chain(
            jebm.energy.standard_normal, lambda z: z, jnp.zeros(2), z, (noise, noise), (0.1, 0.1), 1.0
        )


# --- parity -----------------------------------------------------------------------------------------------------------


def latent_case(golden):
    case = golden("E5_sgld_latent")
    image = case["joint/in/x0"].shape[1:]
    module, params = head_of(case, "w/ebm", image)
    kernel = case["w/dec/init/conv_1/kernel"]
    decoder = Decoder(
        width=kernel.shape[-1] // 32, image_size=image[0], channels=image[-1], latent_size=kernel.shape[-2]
    )
    template = dict(jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, kernel.shape[-2]))))
    template["spectral"] = spectral_norm.init(jax.random.key(0), template["params"])
    variables = from_flat(group(case, "w/dec") | group(case, "sn/dec"), template)
    normalized = spectral_norm.normalize(variables["params"], variables["spectral"])
    decode = lambda z: decoder.apply({"params": normalized, "batch_stats": variables["batch_stats"]}, z)  # noqa: E731
    return case, energy.bind(lambda params, x: module.apply({"params": params}, x), params), decode


def assert_energies(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.golden
def test_the_lookahead_chain_of_the_release(golden, highest_precision):
    case, head, decode = latent_case(golden)
    noise = np.moveaxis(case["z/in/noise_z"], 0, 1)
    settings = float(case["z/cfg/step_size"]), float(case["z/cfg/tau"])
    chain = lambda z, noise: latent_chains.lookahead_chain(head, decode, z, noise, *settings)  # noqa: E731
    z, energies = jax.jit(jax.vmap(chain))(case["z/in/z0"], noise)
    np.testing.assert_allclose(z, case["z/out/z"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(decode(z), case["z/out/x"], rtol=0, atol=2e-5)
    assert_energies(energies.T, case["z/out/energy"])


@pytest.mark.golden
def test_the_joint_chain_of_the_release(golden, highest_precision):
    case, head, decode = latent_case(golden)
    noise = np.moveaxis(case["joint/in/noise_x"].astype(np.float32), 0, 1), np.moveaxis(case["joint/in/noise_z"], 0, 1)
    steps = float(case["joint/cfg/step_size_x"]), float(case["joint/cfg/step_size_z"])
    tau = float(case["joint/cfg/tau"])
    chain = lambda x, z, noise: latent_chains.joint_chain(head, decode, x, z, noise, steps, tau)  # noqa: E731
    x, z, energies = jax.jit(jax.vmap(chain))(case["joint/in/x0"], case["joint/in/z0"], noise)
    np.testing.assert_allclose(x, case["joint/out/x"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(z, case["joint/out/z"], rtol=0, atol=2e-5)
    assert_energies(energies.T, case["joint/out/energy"])
