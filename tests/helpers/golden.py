"""Golden cases: numbers from the papers' own codes, as trees."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jebm.convert.arrays import from_flat
from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.networks import spectral_norm


def group(case, prefix):
    return {name[len(prefix) + 1 :]: array for name, array in case.items() if name.startswith(prefix + "/")}


def close_to_max(actual, expected, fraction):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=fraction * np.max(np.abs(expected)))


def trees_close(actual, expected, rtol=0.0, atol=0.0):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)


def energy_net(case, network, **options):
    layers = tuple((int(channels), int(blocks)) for channels, blocks in case["cfg/layers"])
    return network(layers=layers, head_width=case["w/head/fc_1/bias"].size, **options)


def load(module, case, *inputs, weights="w", vectors=None, exclude=()):
    """The variables of a case, and the spectral state where ``vectors`` names its group."""
    template = dict(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    arrays = group(case, weights)
    if vectors is not None:
        template["spectral"] = spectral_norm.init(jax.random.key(0), template["params"], exclude)
        arrays |= group(case, vectors)
    variables = from_flat(arrays, template)
    return variables, variables.pop("spectral", None)


def network_of(weights):
    """The energy network whose weights these are, its layers read off their names and shapes."""
    trunk = "scale1/" if any(name.startswith("scale1/") for name in weights) else ""
    layers = []
    for stage in range(9):
        pattern = re.compile(rf"{trunk}stage{stage}/block\d+/conv_1/kernel")
        kernels = [weight for name, weight in weights.items() if pattern.fullmatch(name)]
        if kernels:
            layers.append((kernels[0].shape[-1], len(kernels)))
    kind = MSResNet if trunk else ResNet
    return kind(layers=tuple(layers), head_width=weights["head/fc_1/bias"].size)


def head_of(case, prefix="w", image=(16, 16, 3)):
    weights = group(case, prefix)
    module = network_of(weights)
    variables, _ = load(module, case, jnp.zeros((1, *image)), weights=prefix)
    return module, variables["params"]


def at(tree, name):
    return functools.reduce(lambda node, part: node[part], name.split("/"), tree)


def vectors_like(state, case, prefix):
    return from_flat(group(case, prefix), {"spectral": state})["spectral"]


def stats_like(stats, case, prefix):
    return from_flat(group(case, prefix), {"batch_stats": stats})["batch_stats"]


def adam_moments(optimizer_state):
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return next(node for node in jax.tree.leaves(optimizer_state, is_leaf=is_adam) if is_adam(node))
