"""Networks of energies whose gradients compute blocks again: the same function, less kept."""

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT

from jebm.config import load_file, override
from jebm.methods.denoising.networks import DenoisingUNet
from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.methods.hat.networks import HatEnergy
from jebm.runs import run as runs

LAYERS = ((8, 1), (16, 1))
NETWORKS = {
    "ResNet": lambda on: ResNet(LAYERS, 16, rematerialize=on),
    "MSResNet": lambda on: MSResNet(LAYERS, 16, rematerialize=on),
    "HatEnergy": lambda on: HatEnergy(8, 16, rematerialize=on),
    "DenoisingUNet": lambda on: DenoisingUNet(8, (1, 2), 1, rematerialize=on),
}


def kept(function, x):
    pulled = jax.eval_shape(lambda x: jax.vjp(function, x)[1], x)
    return sum(leaf.size for leaf in jax.tree.leaves(pulled))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_parameters_values_and_gradients_from_less(name, key):
    plain, again = NETWORKS[name](False), NETWORKS[name](True)
    x = jax.random.uniform(jax.random.fold_in(key, 1), (16, 8, 8, 3))
    levels = (jnp.full(16, 0.3),) if name == "DenoisingUNet" else ()
    params = jax.jit(plain.init)(key, x, *levels)
    assert jax.tree.structure(jax.eval_shape(again.init, key, x, *levels)) == jax.tree.structure(params)
    params = jax.tree.map(lambda p: p + 0.05, params)  # heads and last layers start near 0
    energy = {n: lambda x, n=n: jnp.square(n.apply(params, x, *levels)).sum() for n in (plain, again)}
    (value, gradient), (value_again, gradient_again) = (jax.jit(jax.value_and_grad(energy[n]))(x) for n in energy)
    assert float(jnp.abs(gradient).max()) > 0
    assert jnp.allclose(value, value_again, rtol=1e-6)
    assert jnp.allclose(gradient, gradient_again, rtol=1e-4, atol=1e-5 * float(jnp.abs(gradient).max()))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert kept(energy[again], x) - weights < 0.7 * (kept(energy[plain], x) - weights)


@pytest.mark.parametrize("path", ["ec_vae/cifar10", "hat_ebm/cifar10_synthesis", "denoising_ebm/cifar10"])
def test_every_family_hands_the_option_to_its_energy(path):
    counts = []
    for on in (False, True):
        config = override(load_file(ROOT / "configs" / f"{path}.py"), [f"method.rematerialize={str(on).lower()}"])
        method = runs.build(config)
        state = runs.abstract_state(method, config).method
        x = jnp.zeros((2, *method.image_shape))
        of = jax.eval_shape(lambda state, x, e=method.energy: jax.vjp(jax.vmap(e(state)), x)[1], state, x)
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(of)))
    assert counts[1] < counts[0]
