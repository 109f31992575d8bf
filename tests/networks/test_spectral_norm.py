"""Spectral normalisation: the power iteration, its gradient, and how fast it converges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.networks import spectral_norm


def small_params(key):
    draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape)  # noqa: E731
    return {
        "conv": {"kernel": draw(0, (3, 2, 4, 5)), "bias": draw(1, (5,))},
        "group": {"fc": {"kernel": draw(2, (7, 6))}, "bn": {"scale": draw(3, (6,)), "bias": draw(4, (6,))}},
    }


def matrix(kernel):
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])


def test_vectors_are_random_units_for_kernels_alone(key):
    state = spectral_norm.init(key, small_params(key))
    shapes = jax.tree.map(jnp.shape, state, is_leaf=lambda leaf: isinstance(leaf, jax.Array))
    assert shapes == {"conv": {"u": (5,), "v": (24,)}, "group": {"fc": {"u": (6,), "v": (7,)}}}
    for leaf in jax.tree.leaves(state):
        np.testing.assert_allclose(jnp.linalg.norm(leaf), 1.0, rtol=1e-6)
    assert len({float(leaf[0]) for leaf in jax.tree.leaves(state)}) == 4  # draws of their own


def test_one_iteration_moves_v_first_then_u(key):
    params = small_params(key)
    state = spectral_norm.init(key, params)
    new = spectral_norm.iterate(params, state)
    k, u = matrix(params["conv"]["kernel"]), np.asarray(state["conv"]["u"], np.float64)
    v = k @ u / np.linalg.norm(k @ u)
    np.testing.assert_allclose(new["conv"]["v"], v, atol=1e-6)
    np.testing.assert_allclose(new["conv"]["u"], k.T @ v / np.linalg.norm(k.T @ v), atol=1e-6)
    twice = spectral_norm.iterate(params, new)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        spectral_norm.iterate(params, state, num_iterations=2),
        twice,
    )


def test_converged_sigma_is_the_largest_singular_value(key):
    params = small_params(key)
    state = spectral_norm.iterate(params, spectral_norm.init(key, params), num_iterations=300)
    sigma = spectral_norm.sigmas(params, state)
    np.testing.assert_allclose(sigma["conv"], np.linalg.norm(matrix(params["conv"]["kernel"]), 2), rtol=1e-5)
    np.testing.assert_allclose(
        sigma["group"]["fc"], np.linalg.norm(matrix(params["group"]["fc"]["kernel"]), 2), rtol=1e-5
    )


def test_normalize_divides_kernels_and_leaves_the_rest(key):
    params = small_params(key)
    state = spectral_norm.init(key, params)
    sigma = spectral_norm.sigmas(params, state)["conv"]
    normalized = spectral_norm.normalize(params, state)
    np.testing.assert_allclose(normalized["conv"]["kernel"], params["conv"]["kernel"] / sigma, rtol=1e-6)
    np.testing.assert_array_equal(normalized["conv"]["bias"], params["conv"]["bias"])
    np.testing.assert_array_equal(normalized["group"]["bn"]["scale"], params["group"]["bn"]["scale"])


def test_the_state_says_which_kernels_are_normalized(key):
    params = small_params(key)
    state = spectral_norm.init(key, params, exclude=("group",))
    assert set(state) == {"conv"}
    normalized = spectral_norm.normalize(params, spectral_norm.iterate(params, state))
    np.testing.assert_array_equal(normalized["group"]["fc"]["kernel"], params["group"]["fc"]["kernel"])
    assert not np.allclose(normalized["conv"]["kernel"], params["conv"]["kernel"])
    untouched = spectral_norm.normalize(params, spectral_norm.iterate(params, {}))
    jax.tree.map(np.testing.assert_array_equal, untouched, params)


def test_gradient_passes_through_sigma_with_the_vectors_constant(key):
    """With σ = vᵀKu: d/dK <C, K/σ> = C/σ - <C, K>/σ² v uᵀ."""
    params = {"fc": {"kernel": jax.random.normal(key, (4, 3))}}
    state = spectral_norm.init(jax.random.fold_in(key, 1), params)
    c = jax.random.normal(jax.random.fold_in(key, 2), (4, 3))

    def loss(params, state):
        state = spectral_norm.iterate(params, state)
        return jnp.sum(c * spectral_norm.normalize(params, state)["fc"]["kernel"])

    gradient, state_gradient = jax.grad(loss, argnums=(0, 1))(params, state)
    after = spectral_norm.iterate(params, state)["fc"]
    k, u, v, c = (np.asarray(a, np.float64) for a in (params["fc"]["kernel"], after["u"], after["v"], c))
    sigma = v @ k @ u
    expected = c / sigma - np.sum(c * k) / sigma**2 * np.outer(v, u)
    np.testing.assert_allclose(gradient["fc"]["kernel"], expected, rtol=2e-4, atol=2e-5)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state_gradient))


def test_works_abstractly_and_under_vmap(key):
    params = small_params(key)
    abstract = jax.eval_shape(small_params, key)
    state = spectral_norm.init(key, abstract)
    jax.tree.map(np.testing.assert_array_equal, state, spectral_norm.init(key, params))
    shapes = jax.eval_shape(spectral_norm.normalize, abstract, jax.eval_shape(spectral_norm.iterate, abstract, state))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    stacked = jax.vmap(lambda k: spectral_norm.iterate(params, spectral_norm.init(k, params)))(jax.random.split(key, 2))
    one = spectral_norm.iterate(params, spectral_norm.init(jax.random.split(key, 2)[1], params))
    np.testing.assert_allclose(stacked["conv"]["u"][1], one["conv"]["u"], atol=1e-6)


def test_errors_name_the_layer(key):
    params = small_params(key)
    state = spectral_norm.init(key, params)
    with pytest.raises(ValueError, match="no kernel under 'head'"):
        spectral_norm.init(key, params, exclude=("head",))
    with pytest.raises(ValueError, match="'conv'.*no kernel there"):
        spectral_norm.iterate({"group": params["group"]}, state)
    wrong = params | {"conv": {"kernel": jnp.ones((3, 3, 4, 5))}}
    with pytest.raises(ValueError, match=r"'conv' is a matrix \(36, 5\), its vectors \(24, 5\)"):
        spectral_norm.normalize(wrong, state)


def singular_values(key, network, num_iterations):
    """The true largest singular value of each normalised kernel, at initialisation."""
    params = jax.jit(network.init)(key, jnp.zeros((32, 32, 3)))["params"]
    state = spectral_norm.init(jax.random.fold_in(key, 1), params)
    state = jax.jit(spectral_norm.iterate, static_argnums=2)(params, state, num_iterations)
    kernels = [leaf for leaf in jax.tree.leaves(spectral_norm.normalize(params, state)) if leaf.ndim > 1]
    largest = []
    for kernel in map(matrix, kernels):
        gram = kernel.T @ kernel if kernel.shape[0] > kernel.shape[1] else kernel @ kernel.T
        largest.append(np.sqrt(np.linalg.eigvalsh(gram)[-1]))
    return np.asarray(largest)


def test_largest_singular_values_are_below_1_05_after_twenty_iterations(key):
    """One kernel of each shape of the demo's energy network; all 56 of them below, marked slow."""
    largest = singular_values(key, ResNet(layers=((128, 1), (256, 1))), 20)
    assert largest.shape == (8,)
    assert np.all(largest > 0.9999)  # σ never exceeds the norm
    assert largest.max() < 1.05


@pytest.mark.slow
@pytest.mark.parametrize(("num_iterations", "worst", "mean"), [(1, 1.5, 1.3), (5, 1.13, 1.09), (20, 1.05, 1.03)])
def test_the_energy_network_of_the_demo_converges_as_measured(key, num_iterations, worst, mean):
    """At initialisation the authors' network has maximum / mean 1.42/1.26, 1.10/1.07, 1.034/1.014."""
    largest = singular_values(key, MSResNet(), num_iterations)
    assert largest.shape == (56,)
    assert np.all(largest > 0.9999)
    assert largest.max() < worst
    assert largest.mean() < mean
