"""What all learning rules share: no gradient through chains, energies of any kind, keys used once, honest reports."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.learning_rules import BATCH, CHAINS, KEY, NOISE, PARAMS, RULES, family, function, kernel_of, rule

import jebm
from jebm import energy, learning
from jebm.mcmc import bank

every_rule = pytest.mark.parametrize("name", RULES)


def test_every_public_rule_is_here():
    public = {name for name, value in vars(learning).items() if callable(value) and not isinstance(value, type)}
    assert public - {"contrastive_loss", "gaussian_noise"} == set(RULES)


@every_rule
def test_the_gradient_of_the_parameters_however_they_are_held(name):
    """Bound, in a closure, or in a module: one gradient, compiled or not."""
    of = family(name)
    bound = lambda params, key: rule(name, energy.bind(of, params), key)  # noqa: E731
    loss, aux = jax.jit(bound)(PARAMS, KEY)
    assert loss.shape == ()
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(aux))
    gradient = jax.jit(jax.grad(bound, has_aux=True))
    expected, _ = gradient(PARAMS, KEY)
    assert optax.tree.norm(expected) > 0
    closure = lambda params, key: rule(name, lambda *x: of(params, *x), key)  # noqa: E731
    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5))
    for params in (PARAMS, jax.tree.map(lambda a: 2.0 * a, PARAMS)):  # nothing of the first ones is kept
        close(jax.grad(closure, has_aux=True)(params, KEY)[0], gradient(params, KEY)[0])

    class Network(nnx.Module):
        def __init__(self):
            self.w, self.k = (nnx.Param(PARAMS[name]) for name in ("w", "k"))

        def __call__(self, *x):
            return of({"w": self.w[...], "k": self.k[...]}, *x)

    gradients, _ = nnx.grad(lambda network: rule(name, network), has_aux=True)(Network())
    close({name: gradients[name][...] for name in ("w", "k")}, expected)


@pytest.mark.parametrize("name", CHAINS[:3])
def test_no_gradient_flows_through_a_chain(name):
    """The gradient is the difference of the means of ∇_θ E, chains being what they are."""
    bound = lambda params: rule(name, energy.bind(function, params))  # noqa: E731
    (loss, aux), gradients = jax.jit(jax.value_and_grad(bound, has_aux=True))(PARAMS)
    mean = lambda params, batch: jnp.mean(jax.vmap(functools.partial(function, params))(batch))  # noqa: E731
    np.testing.assert_allclose(aux.energy_data, mean(PARAMS, BATCH), rtol=1e-5)
    np.testing.assert_allclose(aux.energy_negative, mean(PARAMS, aux.negatives), rtol=1e-5)
    np.testing.assert_allclose(loss, aux.energy_data - aux.energy_negative, atol=1e-6)
    slopes = [jax.grad(mean)(PARAMS, batch) for batch in (BATCH, aux.negatives)]
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, a - b, rtol=1e-4, atol=1e-6), gradients, *slopes
    )  # fmt: skip
    held, _ = rule(name, energy.bind(function, PARAMS), regularization=0.5)
    on_both = [jax.vmap(functools.partial(function, PARAMS))(batch) for batch in (BATCH, aux.negatives)]
    np.testing.assert_allclose(held - loss, 0.5 * sum(jnp.mean(values**2) for values in on_both), rtol=1e-4)


def test_chains_begin_where_the_rules_say():
    of = energy.bind(function, PARAMS)
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(rule("contrastive_divergence", of)[1].starts, BATCH)
    chains = RULES["persistent_contrastive_divergence"][0]
    _, aux = rule("persistent_contrastive_divergence", of, rejuvenation=0.0)
    same(jax.tree.map(lambda a: jnp.sort(a, 0), aux.starts), jax.tree.map(lambda a: jnp.sort(a, 0), chains.entries))
    ends, kept = (jax.tree.map(lambda a: jnp.sort(a, 0), tree) for tree in (aux.negatives, aux.bank.entries))
    same(ends, kept)
    np.testing.assert_array_equal(aux.bank.ages, 1)
    _, aux = rule("persistent_contrastive_divergence", of, rejuvenation=1.0)
    assert not np.isin(aux.starts["y"], chains.entries["y"]).any()
    np.testing.assert_array_equal(aux.bank.ages, 0)


def test_a_bank_smaller_than_the_batch_is_refused():
    small = bank.init(jax.tree.map(lambda a: a[:3], BATCH))
    with pytest.raises(ValueError, match="6 distinct rows cannot be drawn from a bank of 3"):
        learning.persistent_contrastive_divergence(
            KEY, energy.bind(function, PARAMS), BATCH, small, kernel_of, 2, NOISE.draw
        )


def test_what_score_matching_and_classification_report():
    of = energy.bind(function, PARAMS)
    _, aux = rule("sliced_score_matching", of)
    values, slopes = jax.vmap(jax.value_and_grad(functools.partial(function, PARAMS)))(BATCH)
    norms = np.sqrt(np.sum(np.asarray(slopes["x"]) ** 2, 1) + np.asarray(slopes["y"]) ** 2)
    np.testing.assert_allclose(aux.energy, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.score_norm, norms.mean(), rtol=1e-5)
    data = jax.tree.map(lambda a: jnp.repeat(a[:1], 400, 0), {"x": jnp.full((1, 3), 20.0), "y": jnp.zeros(1)})
    right = lambda x: -jnp.where(x["x"][0] > 10, 1e4, -1e4)  # noqa: E731
    for given, accuracy in ((right, 1.0), (lambda x: -right(x), 0.0), (lambda x: 0.0 * right(x) - 1e4, 0.5)):
        _, aux = learning.noise_contrastive_estimation(KEY, given, data, NOISE)
        np.testing.assert_allclose(aux.accuracy, accuracy)
    _, aux = learning.energy_discrepancy(KEY, lambda x: x["x"][0], data, 0.5, num_negatives=5)
    assert abs(aux.accuracy - 1 / 6) < 5 * np.sqrt(5 / 36 / 400)  # the least of six that are alike


def test_the_loop_of_the_docstring():
    """An nnx module trained in place with persistent chains, as `jebm.learning` writes it."""
    body = textwrap.dedent(learning.__doc__.partition("carried along:\n")[2].partition("By chains")[0])

    class Network(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, x):
            return 0.5 * jnp.sum(self.w[...] * x**2)

    names = {"jebm": jebm, "jax": jax, "jnp": jnp, "nnx": nnx, "key": KEY, "kernel_of": kernel_of}
    exec(body.replace("8192", "8"), names)
    network = Network()
    optimizer = nnx.Optimizer(network, optax.sgd(0.1), wrt=nnx.Param)
    chains = names["chains"]
    for i in range(2):
        chains = names["iteration"](network, optimizer, chains, jax.random.key(i), jnp.ones((4, 2)))
    assert chains.ages.max() > 0  # carried on
    assert (network.w[...] != 1.0).all()
