"""What the tests of whole training iterations share: states that are not initial ones, plain chains, plain Adam.

A family's state is filled with draws instead of initial values: averages differ from weights, batch statistics and
singular vectors are those of no batch, so that whoever reads the wrong one is seen.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from jebm.methods.ec import calibration


def drawn_state(method, batch, seed):
    """A state of a method with every array drawn, optimisers at their start; scalars (λ) as configured."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        if any("optimizer" in name for name in names):
            return np.zeros(leaf.shape, leaf.dtype)
        normal = rng.standard_normal(leaf.shape).astype(np.float32)
        last = names[-1]
        if last == "kernel":
            return normal / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        if last in ("u", "v"):
            return normal / np.linalg.norm(normal)
        if last == "var":
            return np.exp(0.3 * normal)
        return 0.2 * normal + (last == "scale")

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def images_of(shape, batch_size, seed):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (batch_size, *shape)), jnp.float32)


# --- chains -----------------------------------------------------------------------------------------------------------


def chain_noise(key, shape, config):
    """The standard normals [B, K, ...] that `calibrate` draws: its increments where the energy is flat."""
    free = [
        calibration.calibrate(key, flat, jnp.zeros(shape), dataclasses.replace(config, num_steps=k + 1, cond_scale=0.0))
        for k in range(config.num_steps)
    ]
    return jnp.diff(jnp.stack([jnp.zeros(shape), *free], 1), axis=1) / np.sqrt(config.step_size)


def flat(x):
    return 0.0 * jnp.sum(x)


def chain(f, start, noise, config):
    """``x - (s/2) ∇f(x)/τ + sqrt(s) ξ`` of a batch, K times; a condition of two steps' chain does not act.

    Its weight is 0 at the last step, and its distance at the first.
    """
    assert config.num_steps <= 2

    def step(x, xi):
        gradient = jax.grad(lambda x: jnp.sum(f(x)))(x)
        return x - config.step_size / (2 * config.temperature) * gradient + np.sqrt(config.step_size) * xi, None

    return jax.lax.scan(step, start, jnp.moveaxis(noise, 1, 0))[0]


def calibrated_by(f, key, start, config):
    """`chain` from ``start`` with the noise that ``key`` gives."""
    return chain(f, start, chain_noise(key, start.shape, config), config)


def slopes(f, data, negatives):
    """Mean norm of ∇f over the first four of each, under the names of the metrics."""
    gradient = jax.grad(lambda x: jnp.sum(f(x)))(jnp.concatenate([data[:4], negatives[:4]]))
    norms = jnp.sqrt(jnp.sum(gradient**2, (1, 2, 3)))
    return {"data_gradient_norm": jnp.mean(norms[:4]), "negative_gradient_norm": jnp.mean(norms[4:])}


def outside(x):
    return jnp.mean(1.0 * (jnp.abs(x) >= 1))


# --- comparisons ------------------------------------------------------------------------------------------------------


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


def assert_trees(actual, expected, rtol):
    """Each leaf to ``rtol`` of its largest entry, or of a thousandth of the tree's."""
    actual, expected = jax.device_get((actual, expected))  # numpy compiles nothing
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))

    def compare(path, a, b):
        bound = rtol * max(float(np.max(np.abs(b))), 1e-3 * largest)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, actual, expected)


def assert_metrics(actual, expected, rtol):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=rtol, atol=1e-6, err_msg=name)


def assert_adam(before, after, gradients, rate, b1, b2):
    """Parameters ``after`` are where Adam (Kingma & Ba, algorithm 1) comes from ``before`` by a list of gradients."""

    def path(start, end, *steps):
        x, first, second = np.asarray(start, np.float64), 0.0, 0.0
        for t, g in enumerate(np.asarray(steps, np.float64), 1):
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
            x = x - rate * (first / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + 1e-8)
        np.testing.assert_allclose(end, x, rtol=0, atol=2e-3 * rate + 5e-7 * np.max(np.abs(x)))

    jax.tree.map(path, before, after, *gradients)


def assert_moving_average(old, weights, new, decay):
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, *jax.device_get((old, weights)))
    assert_trees(new, expected, 1e-6)


def readers(read, state, seed):
    """For each part of a state, which of the outputs ``read(state)`` change when it alone does.

    A part is a field, or one of a nested NamedTuple of networks, by its dotted name; a dictionary of networks counts
    as one.
    """
    before, rng, changed = jax.device_get(read(state)), np.random.default_rng(seed), {}

    def disturb(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return np.asarray(leaf) * np.float32(rng.uniform(1.2, 1.5, leaf.shape)) + np.float32(0.01)

    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    parts = [".".join(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)) for path, _ in leaves]
    parts = [re.sub(r"optimizer\..*", "optimizer", part) for part in parts]
    for part in dict.fromkeys(parts):
        moved = [disturb(leaf) if own == part else leaf for own, (_, leaf) in zip(parts, leaves, strict=True)]
        after = jax.device_get(read(jax.tree.unflatten(structure, moved)))
        changed[part] = {name for name in before if not np.array_equal(before[name], after[name])}
    return changed
