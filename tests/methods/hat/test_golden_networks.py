"""Parity of Hat EBM's networks with numbers from the authors' own code; sizes come from the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import close_to_max, load

from jebm.methods.hat.networks import HatDecoder, HatEncoder, HatEnergy, HatGenerator

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def gradient_of_product(module, variables, x, weights):
    """Outputs, and the gradient of ``sum(output * weights)``, by the single-example use."""

    @jax.jit
    @jax.vmap
    def one(x, weights):
        output, pullback = jax.vjp(lambda x: module.apply(variables, x), x)
        return output, pullback(weights)[0]

    return one(x, weights)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_hat(golden, size):
    case = golden(f"H1_ebm{size}")
    x = case["in/x"]
    module = HatEnergy(x.shape[1], int(case["cfg/ngf"]))
    variables, _ = load(module, case, x[0])
    energies, gradients = gradient_of_product(module, variables, x, jnp.ones(len(x)))
    np.testing.assert_allclose(energies[:, None], case["out/energy"], rtol=1e-5, atol=2e-6)
    expected = case["out/grad_x"]
    close_to_max(np.asarray(gradients)[: len(expected)], expected, 1e-5)
    norms = np.linalg.norm(np.asarray(gradients).reshape(len(x), -1), axis=1)
    np.testing.assert_allclose(norms, case["out/grad_x_norm"], rtol=1e-5)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_generator(golden, size):
    case = golden(f"H2_gen{size}")
    z, weights = case["in/z"], case["in/c"]
    for factor in (1, 2):
        module = HatGenerator(weights.shape[1], int(case["cfg/ngf"]), weights.shape[-1], float(factor))
        variables, _ = load(module, case, z[0])
        images, gradients = gradient_of_product(module, variables, z, weights)
        if f"out/image_f{factor}" in case:
            np.testing.assert_allclose(images, case[f"out/image_f{factor}"], rtol=0, atol=1e-5)
        close_to_max(np.asarray(gradients), case[f"out/dz_f{factor}"], 1e-5)


def test_decoder(golden):
    case = golden("H3_decoder32")
    z, weights = case["in/z"], case["in/c"]
    module = HatDecoder(int(case["cfg/ngf"]), weights.shape[-1])
    variables, _ = load(module, case, z[0])
    images, gradients = gradient_of_product(module, variables, z, weights)
    np.testing.assert_allclose(images, case["out/image_f2"], rtol=0, atol=1e-5)
    close_to_max(np.asarray(gradients), case["out/dz_f2"], 1e-5)


@pytest.mark.parametrize("kind", ["sphere", "raw"])
def test_encoder(golden, kind):
    case = golden("H3_encoder32")
    x = case["in/x"]
    module = HatEncoder(int(case["cfg/ngf"]), project=kind == "sphere")
    variables, _ = load(module, case, x[0])
    codes, gradients = gradient_of_product(module, variables, x, case["in/c"])
    np.testing.assert_allclose(codes, case[f"out/code_{kind}"], rtol=0, atol=1e-5)
    close_to_max(np.asarray(gradients), case[f"out/grad_x_{kind}"], 1e-5)
