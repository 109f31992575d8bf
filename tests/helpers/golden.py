"""Golden cases: numbers from the papers' own codes, as trees."""

import functools

import jax
import numpy as np
import optax

from jebm.convert.arrays import from_flat
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


def at(tree, name):
    return functools.reduce(lambda node, part: node[part], name.split("/"), tree)


def vectors_like(state, case, prefix):
    return from_flat(group(case, prefix), {"spectral": state})["spectral"]


def stats_like(stats, case, prefix):
    return from_flat(group(case, prefix), {"batch_stats": stats})["batch_stats"]


def adam_moments(optimizer_state):
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return next(node for node in jax.tree.leaves(optimizer_state, is_leaf=is_adam) if is_adam(node))
