"""Parity of the energy-calibrated VAE's networks with numbers from the authors' own code.

Sizes and constants come from the files; the energy in the files is f/tau.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import at, close_to_max, energy_net, group, load, stats_like, trees_close, vectors_like

from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.methods.ec.vae_networks import Decoder, Encoder
from jebm.methods.ec.vae_networks_256 import Encoder256
from jebm.networks import spectral_norm

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnums=0)
def energies_and_gradient(module, params, x, tau):
    """By the single-example use: vmap of one energy and of its gradient."""

    def energy(image):
        return module.apply({"params": params}, image) / tau

    values, gradients = jax.vmap(jax.value_and_grad(energy))(x)
    return values[:, None], gradients


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def evaluate(module, variables, inputs, train=False):
    """The outputs, and the batch statistics afterwards."""
    outputs, updated = module.apply(variables, inputs, train=train, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]


iterate = jax.jit(spectral_norm.iterate)
normalize = jax.jit(spectral_norm.normalize)


@pytest.mark.parametrize(
    ("name", "network", "options"),
    [
        ("E1_resnet", ResNet, {}),
        ("E1_resnet_silu", ResNet, {"activation": nn.silu}),
        ("E1_msresnet", MSResNet, {}),
    ],
)
def test_energy_network(golden, name, network, options):
    case = golden(name)
    module, tau = energy_net(case, network, **options), float(case["cfg/tau"])
    variables, _ = load(module, case, case["in/x"])
    energy, gradient = energies_and_gradient(module, variables["params"], case["in/x"], tau)
    np.testing.assert_allclose(energy, case["out/energy"], rtol=1e-5, atol=1e-6 / tau)
    np.testing.assert_allclose(energy * tau, case["out/f"], rtol=1e-5, atol=1e-6)
    close_to_max(gradient, case["out/grad_x"], 1e-5)


def test_spectral_norm_of_the_energy_network(golden):
    case = golden("E2_msresnet_sn")
    module, tau, x = energy_net(case, MSResNet), float(case["cfg/tau"]), case["in/x"]
    variables, state = load(module, case, x, vectors="sn0")
    params, num_calls = variables["params"], int(case["cfg/n"])

    @jax.jit
    def energies(state):
        return module.apply({"params": spectral_norm.normalize(params, state)}, x)[:, None] / tau

    def sigmas(state):
        tree = jax.jit(spectral_norm.sigmas)(params, state)
        return [at(tree, name) for name in case["out/sigma_names"]]

    np.testing.assert_allclose(sigmas(state), case["out/sigma"][0], rtol=1e-5)
    close_to_max(energies(state), case["out/energy_eval0"], 1e-4)  # u, v not converged: huge numbers
    for call in range(num_calls):
        state = iterate(params, state)
        if call == 0:
            trees_close(state, vectors_like(state, case, "sn1"), atol=1e-5)
        np.testing.assert_allclose(sigmas(state), case["out/sigma"][call + 1], rtol=1e-5)
        np.testing.assert_allclose(energies(state), case["out/energy_train"][call], rtol=2e-5)
    trees_close(state, vectors_like(state, case, "snN"), atol=1e-5)

    normalized = normalize(params, state)
    for name, kernel in group(case, "weffN").items():
        close_to_max(at(normalized, name), kernel, 1e-5)
    energy, gradient = energies_and_gradient(module, normalized, x, tau)
    np.testing.assert_allclose(energy, case["out/energy_evalN"], rtol=2e-5)
    close_to_max(gradient, case["out/grad_x_evalN"], 2e-5)


def test_encoder(golden):
    case = golden("E3_encoder")
    x = case["in/x"]
    module = Encoder(width=int(case["cfg/dim_h"]), latent_size=int(case["cfg/nz"]))
    variables, _ = load(module, case, x)

    def check(outputs, name, atol):
        np.testing.assert_allclose(outputs[0], case[f"out/mu_{name}"], rtol=0, atol=atol)
        np.testing.assert_allclose(outputs[1], case[f"out/logvar_{name}"], rtol=0, atol=atol)

    check(evaluate(module, variables, x)[0], "eval0", 1e-5)
    outputs, stats = evaluate(module, variables, x, train=True)
    check(outputs, "train", 5e-5)
    trees_close(stats, stats_like(stats, case, "stats1"), rtol=1e-5, atol=1e-6)
    check(evaluate(module, variables | {"batch_stats": stats}, x)[0], "eval1", 1e-5)


def test_decoder(golden):
    case = golden("E3_generator32")
    z, c = case["in/z"], case["in/c"]
    latent_size, (*_, image_size, channels) = int(case["cfg/nz"]), c.shape
    module = Decoder(int(case["cfg/ngf"]), image_size, channels, latent_size)
    variables, state = load(module, case, z, vectors="sn0")
    params, stats = variables["params"], variables["batch_stats"]

    def check(name, state, stats, train, atol):
        normalized = normalize(params, state)

        def loss(z):
            image, updated = evaluate(module, {"params": normalized, "batch_stats": stats}, z, train=train)
            return jnp.sum(image * c), (image, updated)

        dz, (image, updated) = jax.grad(loss, has_aux=True)(z)
        np.testing.assert_allclose(image, case[f"out/image_{name}"], rtol=0, atol=atol)
        close_to_max(dz, case[f"out/dz_{name}"], 5e-5)
        return normalized, updated

    check("eval0", state, stats, False, 2e-5)
    state = iterate(params, state)
    trees_close(state, vectors_like(state, case, "sn1"), atol=2e-5)
    normalized, stats = check("train", state, stats, True, 5e-5)
    trees_close(stats, stats_like(stats, case, "stats1"), rtol=1e-5, atol=1e-6)
    for name, kernel in group(case, "weff1").items():
        close_to_max(at(normalized, name), kernel, 2e-5)
    check("eval1", state, stats, False, 2e-5)


def test_encoder_256(golden):
    case = golden("E4_encoder256")
    x = case["in/x"]
    module = Encoder256(width=int(case["cfg/ndf"]), latent_size=int(case["cfg/nz"]))
    variables, state = load(module, case, x, vectors="sn0", exclude=("mu", "logvar"))
    params = variables["params"]

    def check(name, outputs, atol):
        np.testing.assert_allclose(outputs[0], case[f"out/mu{name}"], rtol=0, atol=atol)
        np.testing.assert_allclose(outputs[1], case[f"out/logvar{name}"], rtol=0, atol=atol)

    frozen = {**variables, "params": normalize(params, state)}
    check("_eval0", evaluate(module, frozen, x)[0], 2e-5)
    check("256_eval0", evaluate(module, frozen, case["in/x256"])[0], 2e-5)
    state = iterate(params, state)
    trees_close(state, vectors_like(state, case, "sn1"), atol=2e-5)
    frozen = {**variables, "params": normalize(params, state)}
    outputs, stats = evaluate(module, frozen, x, train=True)
    check("_train", outputs, 2e-4)
    trees_close(stats, stats_like(stats, case, "stats1"), rtol=1e-5, atol=1e-6)
