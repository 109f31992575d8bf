"""Energies with state of their own: what is sampled is what the energy is now, never what it was when compiled."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jebm
from jebm import energy as energies

pytestmark = pytest.mark.filterwarnings("error")

KEY = jax.random.key(3)
STARTS = jnp.zeros((2, 2))


def ends(kernel):
    """Where gradient descent goes: to the centre of a quadratic, halfway in one step of 0.5 from 0."""
    return np.asarray(jebm.sample_chains(KEY, kernel, STARTS, 1, trace=())[0].position)


def descent(energy):
    return jebm.langevin(energy, 0.5, 0.0)


def quadratic(centre, x):
    return 0.5 * jnp.sum(jnp.square(x - centre))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """As an equinox module: a frozen pytree with a function among its leaves."""

    centre: Any
    activation: Any
    power: Any = 2

    def __call__(self, x):
        return 0.5 * jnp.sum(self.activation(x - self.centre) ** self.power)

    def held(self, x):
        return self.activation(x)


TRACES = []


class Well(nnx.Module):
    """An energy with its weights inside."""

    def __init__(self, centre):
        self.centre = nnx.Param(jnp.full(2, centre, jnp.float32))
        self.name = "well"

    def __call__(self, x):
        TRACES.append(1)
        return quadratic(self.centre[...], x)

    def tilted(self, x):
        return self(x) + jnp.sum(x)


class Opaque(nnx.Module, pytree=False):
    """One that is no pytree."""

    def __init__(self, centre):
        self.centre = nnx.Param(jnp.full(2, centre))

    def __call__(self, x):
        return quadratic(self.centre[...], x)


def test_a_module_trained_in_place_is_followed_without_compiling_again():
    well = Well(0.0)
    kernel = descent(well)  # made once, before the training
    np.testing.assert_allclose(ends(kernel), 0.0)
    before = len(TRACES)
    optimizer = nnx.Optimizer(well, optax.sgd(1.0), wrt=nnx.Param)
    optimizer.update(well, nnx.grad(lambda well: -4.0 * jnp.sum(well.centre[...]))(well))
    np.testing.assert_allclose(well.centre[...], 4.0)
    np.testing.assert_allclose(ends(kernel), 2.0)
    np.testing.assert_allclose(ends(descent(well)), 2.0)
    well.centre[...] = jnp.full(2, -6.0, jnp.float32)
    np.testing.assert_allclose(ends(kernel), -3.0)
    assert len(TRACES) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda well: well,
        lambda well: well.tilted,
        lambda well: lambda x: well(x),
        lambda well: jax.jit(lambda x: well(x)),
        lambda well: functools.partial(lambda well, x: well(x), well),
        lambda well: energies.bind(lambda well, x: well(x), well),
        lambda well: energies.bind(well),
        lambda well: energies.sum(well, energies.scale(well, 0.0)),
        lambda well: energies.latent(well, lambda z: z),
        lambda well: energies.anneal(lambda well, step, x: well(x), well),
        lambda well: energies.anneal(lambda step, x: well(x)),
        lambda well: Partial(well),
        lambda well: Partial(well.tilted),
        lambda well: Partial(lambda x: well(x)),
        lambda well: Partial(lambda x, tilt: well(x) + tilt * jnp.sum(x), tilt=jnp.float32(0.5)),
        lambda well: functools.partial(well),
        lambda well: Network(jnp.zeros(2), well.tilted, 0).held,
        lambda well: {"a": [well]}["a"][0].tilted,
        lambda well: (lambda held: lambda x: held["a"][0](x))({"a": [well]}),
    ],
)
@pytest.mark.parametrize("kind", [Well, Opaque])
def test_however_a_module_is_handed_over_its_present_weights_are_sampled(make, kind):
    if kind is Opaque:
        kind.tilted = Well.tilted
    well = kind(0.0)
    energy = make(well)
    made = isinstance(energy, Partial | energies.Annealed)
    if made and any(leaf is well for leaf in jax.tree.leaves(energy)):
        pytest.skip("no pytree, so no argument of a compiled program")
    kernel = descent(energy)
    first = ends(kernel)
    well.centre[...] = jnp.full(2, 4.0)
    np.testing.assert_allclose(ends(kernel) - first, 2.0)


def test_adjusted_kernels_and_hats_follow_a_module_too():
    well = Well(0.0)
    kernels = [jebm.mala(well, 1e-9), jebm.hmc(well, 1e-9, 1)]
    run = lambda kernel: jebm.sample_chains(KEY, kernel, STARTS, 1, trace=())[0].logdensity  # noqa: E731
    before = [run(kernel) for kernel in kernels]
    well.centre[...] = jnp.full(2, 4.0)
    for kernel, old in zip(kernels, before, strict=True):
        np.testing.assert_allclose(run(kernel) - old, -16.0, rtol=1e-3)


def test_frozen_modules_of_one_structure_compile_once():
    traces, counts = [], []

    def activation(x):
        traces.append(1)
        return x

    for centre in (0.0, 4.0, -6.0):
        np.testing.assert_allclose(ends(descent(Network(jnp.full(2, centre), activation))), centre / 2)
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2] > 0
    assert ends(descent(Network(jnp.zeros(2), jnp.sinh))).any() == 0  # another structure is another program


class Trainer:
    """A plain object whose attributes are exchanged."""

    def __init__(self):
        self.centre, self.scale, self.steps = jnp.zeros(2), 1.0, 0

    def __call__(self, x):
        return self.scale * quadratic(self.centre, x)

    def energy(self, x):
        return self(x) + 0.0 * jnp.sum(self.centre)


class Plain:
    """An object that is no function, with a method that is one."""

    def __init__(self):
        self.place = jnp.zeros(2)

    def loss(self, x):
        return quadratic(self.place, x)


CENTRE = jnp.zeros(2)


def of_a_global(x):
    return quadratic(CENTRE, x)


def through_a_function(x):
    return of_a_global(x)


def test_arrays_that_a_function_reads_from_elsewhere_are_followed(monkeypatch):
    params, trainer, plain = {"centre": jnp.zeros(2)}, Trainer(), Plain()
    centre = jnp.zeros(2)

    def of_a_variable(x):
        return quadratic(centre, x)

    functions = [
        lambda x: quadratic(params["centre"], x), of_a_variable, of_a_global, through_a_function, trainer,
        trainer.energy, lambda x: trainer(x), lambda x: trainer.energy(x), lambda x: quadratic(trainer.centre, x),
        lambda x: plain.loss(x),
        lambda x: jax.vmap(lambda a: quadratic(params["centre"], a))(x[None])[0],
    ]  # fmt: skip
    kernels = [descent(function) for function in functions]
    for kernel in kernels:
        np.testing.assert_allclose(ends(kernel), 0.0)
    params["centre"] = centre = trainer.centre = plain.place = jnp.full(2, 4.0)
    monkeypatch.setitem(globals(), "CENTRE", centre)
    for kernel in kernels:
        np.testing.assert_allclose(ends(kernel), 2.0)
    trainer.scale = 0.5
    np.testing.assert_allclose(ends(kernels[4]), 1.0)


def test_a_function_that_reads_the_same_arrays_compiles_once():
    traces, centre, trainer = [], jnp.ones(2), Trainer()

    def energy(x):
        traces.append(1)
        trainer.steps += 1  # an int: a counter, no parameter
        return quadratic(centre, x) + trainer(x)

    kernel = descent(energy)
    first = ends(kernel)
    once = len(traces)
    trainer.unread = jnp.ones(3)
    trainer.scale = float("1.0")  # another object, the same number
    np.testing.assert_array_equal(ends(kernel), first)
    np.testing.assert_array_equal(ends(descent(energy)), first)
    assert len(traces) == once


def test_energies_with_state_are_pytrees_like_the_others():
    well = Well(2.0)
    kernel = descent(well)
    assert jax.tree.structure(jax.tree.map(lambda a: a, kernel)) == jax.tree.structure(kernel)
    doubled = jax.tree.map(lambda a: 2 * a, energies.as_partial(well))
    np.testing.assert_allclose(doubled(jnp.zeros(2)), 16.0)
    spread = jax.vmap(lambda energy, x: energy(x), (0, None))
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), energies.as_partial(well))
    np.testing.assert_allclose(spread(many, jnp.zeros(2)), [4.0, 16.0])
    gradient = jax.grad(lambda energy, x: energy(x))(energies.as_partial(well), jnp.zeros(2))
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], 2.0)
    jax.eval_shape(lambda energy, x: energy(x), energies.as_partial(well), jnp.zeros(2))


class Normalised(nnx.Module):
    """A module that writes into itself when it is called."""

    def __init__(self):
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jnp.sum(self.norm(jnp.stack([x, 2.0 * x])) ** 3)


def test_what_a_module_writes_into_itself_does_not_leave_the_chain():
    module = Normalised()
    before = np.asarray(module.norm.mean[...])
    jebm.sample_chains(KEY, descent(module), STARTS + 1.0, 2)
    np.testing.assert_array_equal(module.norm.mean[...], before)


def test_what_cannot_be_seen_through():
    """As the docstring of `jebm.energy` says: chains go on with what was there when they were compiled."""
    box, steps, well = np.zeros(2, np.float32), [0], Well(0.0)
    inner = jax.jit(lambda x: quadratic(well.centre[...], x))
    functions = {
        "written in place": lambda x: quadratic(box, x),
        "an int": lambda x: quadratic(jnp.full(2, float(steps[0])), x),
        "under jax.jit": lambda x: 1.0 * inner(x),
        "under jax.checkpoint": jax.checkpoint(lambda x: quadratic(well.centre[...], x)),
    }
    kernels = {name: descent(function) for name, function in functions.items()}
    for kernel in kernels.values():
        np.testing.assert_allclose(ends(kernel), 0.0)
    box[:] = steps[0] = 4
    well.centre[...] = jnp.full(2, 4.0)
    for name, kernel in kernels.items():
        np.testing.assert_allclose(ends(kernel), 0.0, err_msg=name)
    # as arguments they are seen
    given = {
        "written in place": energies.bind(quadratic, box),
        "an int": energies.bind(lambda steps, x: quadratic(jnp.full(2, steps), x), 4.0),
        "under jax.jit": energies.bind(jax.jit(lambda well, x: well(x)), well),
        "under jax.checkpoint": energies.bind(jax.checkpoint(lambda centre, x: quadratic(centre, x)), well.centre[...]),
    }
    for name, energy in given.items():
        np.testing.assert_allclose(ends(descent(energy)), 2.0, err_msg=name)
