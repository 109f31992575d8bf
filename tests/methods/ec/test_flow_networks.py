"""Flows: inverse, log-determinant and Lipschitz constant against dense Jacobians, to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released.latent_flow import LatentFlow

from jebm.methods.ec.flow_networks import ImageFlow, local_lipschitz, log_standard_normal

FLOWS = {
    "latent": (LatentFlow(5, num_blocks=2, width=6, activation="swish"), (5,)),
    "image": (ImageFlow((4, 8, 1), num_scales=2, num_steps=2, width=5), (4, 8, 1)),
}


@pytest.fixture(scope="module", params=FLOWS)
def case(request):
    """A flow whose weights are random, also those that start at 0; a batch; forward and inverse of one example."""
    flow, shape = FLOWS[request.param]
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    variables = flow.init(jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    variables = {**variables, "params": jax.tree.unflatten(structure, leaves)}
    forward = jax.jit(lambda x: flow.apply(variables, x))
    inverse = jax.jit(lambda z: flow.apply(variables, z, method="inverse"))
    return forward, inverse, x


def jacobian(function, x):
    """[D, D] of one example, in float32, the determinant in float64."""
    flat = lambda v: function(v.reshape(1, *x.shape))[0].reshape(-1)  # noqa: E731
    return np.asarray(jax.jit(jax.jacrev(flat))(x.reshape(-1)), np.float64)


def test_the_inverse(case):
    forward, inverse, x = case
    z, log_determinant = forward(x)
    back, log_determinant_back = inverse(z)
    assert float(jnp.abs(z.reshape(3, -1) - x.reshape(3, -1)).max()) > 0.1  # not the identity
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(log_determinant, -log_determinant_back, atol=1e-5)


def test_the_log_determinant(case):
    forward, inverse, x = case
    z, log_determinant = forward(x)
    sign, expected = np.linalg.slogdet(jacobian(forward, x[1]))
    assert abs(sign) == 1
    np.testing.assert_allclose(log_determinant[1], expected, atol=1e-5)
    _, expected = np.linalg.slogdet(jacobian(inverse, z[1]))
    np.testing.assert_allclose(inverse(z)[1][1], expected, atol=1e-5)
    assert float(jnp.ptp(log_determinant)) > 1e-2  # it depends on the point


def test_the_lipschitz_constant(case):
    forward, inverse, x = case
    one = lambda v: forward(v[None])[0][0]  # noqa: E731
    singular = np.linalg.svd(jacobian(forward, x[0]), compute_uv=False)
    np.testing.assert_allclose(local_lipschitz(one, x[0], 400), singular[0], rtol=1e-5)
    z = one(x[0])
    back = lambda v: inverse(v[None])[0][0]  # noqa: E731
    np.testing.assert_allclose(local_lipschitz(back, z, 400), 1.0 / singular[-1], rtol=2e-5)


def test_a_fresh_flow_of_images_is_a_rotation():
    flow, shape = FLOWS["image"]
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    variables = flow.init(jax.random.key(0), x)
    z, log_determinant = flow.apply(variables, x)
    np.testing.assert_allclose(jnp.sum(z**2, -1), jnp.sum(x**2, (1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(log_determinant, jnp.zeros(2))


def test_the_scales_stay_within_their_bound():
    flow, shape = FLOWS["latent"]
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    variables = flow.init(jax.random.key(0), x)
    for coupling in variables["params"].values():
        for name in ("s1", "s2"):
            coupling[name]["fc_3"]["bias"] += 1e8
    log_determinant = flow.apply(variables, x)[1]
    np.testing.assert_allclose(log_determinant, 2 * 5 * 2.0, rtol=2e-3)  # two blocks, five values, clamp 2


def test_the_density_of_the_standard_normal():
    from scipy.stats import norm

    z = np.random.default_rng(0).standard_normal((4, 7))
    np.testing.assert_allclose(log_standard_normal(jnp.asarray(z)), norm.logpdf(z).sum(-1), rtol=1e-5)


def test_sizes_that_cannot_be_squeezed():
    with pytest.raises(ValueError, match="images of 12x8 cannot be squeezed 3 times"):
        ImageFlow((12, 8, 1)).init(jax.random.key(0), jnp.zeros((1, 12, 8, 1)))
