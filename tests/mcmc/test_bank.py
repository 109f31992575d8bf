"""Sample banks: distinct rows, exact replacement, ages, and rows spread over devices."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST_TO_COMPILE, ROOT

import jebm
from jebm.mcmc import bank


def numbered(size):
    rows = jnp.arange(size, dtype=jnp.float32)
    return bank.init(
        {"z": rows[:, None] * jnp.ones((1, 3)), "image": rows[:, None, None, None] * jnp.ones((1, 2, 2, 1))}
    )


def test_draws_are_distinct_rows_with_their_own_entries(key):
    state = numbered(10)
    indices, entries = bank.draw(key, state, 10)
    assert sorted(indices.tolist()) == list(range(10))
    assert indices.tolist() != list(range(10))
    np.testing.assert_array_equal(entries["z"][:, 0], indices)
    np.testing.assert_array_equal(entries["image"][:, 1, 1, 0], indices)


def test_every_row_is_drawn_as_often(key):
    state, draws = numbered(6), 4000
    indices = jax.vmap(lambda k: bank.draw(k, state, 2)[0])(jax.random.split(key, draws))
    counts = np.bincount(np.asarray(indices).ravel(), minlength=6)
    expected, deviation = draws / 3, np.sqrt(draws * (1 / 3) * (2 / 3))
    assert np.abs(counts - expected).max() < 4.5 * deviation
    assert (indices[:, 0] != indices[:, 1]).all()


def test_replace_changes_these_rows_and_no_other():
    state = numbered(5)._replace(ages=jnp.array([4, 0, 2, 7, 1], jnp.int32))
    new = {"z": -jnp.ones((2, 3)), "image": -jnp.ones((2, 2, 2, 1))}
    after = bank.replace(state, jnp.array([3, 0]), new)
    assert after.entries["z"][:, 2].tolist() == [-1, 1, 2, -1, 4]
    assert after.entries["image"][:, 0, 1, 0].tolist() == [-1, 1, 2, -1, 4]
    assert after.ages.tolist() == [0, 1, 3, 0, 2]
    assert after.ages.dtype == jnp.int32


def test_age_of_what_is_drawn_is_geometric(key):
    """Each row is drawn with probability n/N a step: the mean waiting time is N/n steps."""

    def step(state, k):
        indices, entries = bank.draw(k, state, 4)
        return bank.replace(state, indices, entries), state.ages[indices] + 1

    _, waited = jax.lax.scan(step, numbered(20), jax.random.split(key, 3000))
    waited = np.asarray(waited[200:]).ravel()
    np.testing.assert_allclose(waited.mean(), 5.0, rtol=0.05)
    np.testing.assert_allclose((waited == 1).mean(), 0.2, rtol=0.06)


def test_rejuvenation_exchanges_whole_entries_with_its_probability(key):
    n, probability = 4000, 0.3
    entries, fresh = numbered(n).entries, jax.tree.map(lambda a: -a - 1, numbered(n).entries)
    starts, ages = bank.rejuvenate(key, entries, jnp.full(n, 5, jnp.int32), fresh, probability)
    exchanged = np.asarray(starts["z"][:, 0] < 0)
    np.testing.assert_allclose(exchanged.mean(), probability, atol=4.5 * np.sqrt(0.21 / n))
    for name in entries:
        picked = np.where(exchanged.reshape(-1, *(1,) * (entries[name].ndim - 1)), fresh[name], entries[name])
        np.testing.assert_array_equal(starts[name], picked)
    np.testing.assert_array_equal(ages, np.where(exchanged, 0, 6))


def test_a_continued_chain_ages_as_the_others_do(key):
    state = numbered(4)
    indices, entries = bank.draw(key, state, 2)
    starts, ages = bank.rejuvenate(key, entries, state.ages[indices], entries, 0.0)
    assert bank.replace(state, indices, starts, ages).ages.tolist() == [1, 1, 1, 1]


def test_persistent_chains_with_rejuvenation_follow_their_law(key):
    """Langevin on ½x² from 5, K steps a call: a chain of age a has mean 5 ρ^(K(a+1)), ages are geometric."""
    size, calls, step_size, num_steps, probability, start = 400, 120, 0.02, 3, 0.1, 5.0
    kernel = jebm.langevin(jebm.energy.bind(lambda centre, x: 0.5 * jnp.sum((x - centre) ** 2), 0.0), step_size)
    state = bank.init(jnp.full((size, 2), start))

    def call(state, k):
        keys = jax.random.split(k, 3)
        indices, entries = bank.draw(keys[0], state, size)
        fresh = jnp.full((size, 2), start)
        starts, ages = bank.rejuvenate(keys[1], entries, state.ages[indices], fresh, probability)
        ends, _ = jebm.sample_chains(keys[2], kernel, starts, num_steps, trace=())
        state = bank.replace(state, indices, ends.position, ages)
        return state, (state.entries.mean(), (state.ages == 0).mean())

    state, (means, fresh) = jax.lax.scan(call, state, jax.random.split(key, calls))
    decay = (1 - step_size) ** num_steps
    expected = start * probability * decay / (1 - (1 - probability) * decay)
    np.testing.assert_allclose(means[60:].mean(), expected, atol=0.12)
    np.testing.assert_allclose(fresh[60:].mean(), probability, atol=0.01)
    for age in (0, 3):
        chosen = np.asarray(state.entries)[np.asarray(state.ages) == age]
        np.testing.assert_allclose(chosen.mean(), start * decay ** (age + 1), atol=4.5 / np.sqrt(chosen.size))


def test_mistakes_are_named(key):
    with pytest.raises(ValueError, match="5 distinct rows cannot be drawn from a bank of 4: enlarge the bank"):
        bank.draw(key, numbered(4), 5)
    with pytest.raises(ValueError, match=r"one leading axis common to all leaves, got \[\(2,\), \(3,\)\]"):
        bank.init({"z": jnp.zeros((2, 1)), "image": jnp.zeros((3, 1))})


def rows(n):
    return {"z": jnp.ones((n, 3)), "image": jnp.ones((n, 2, 2, 1))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bank.draw(jax.random.key(0), numbered(4), -1), "n must be an int of at least 0, got -1"),
        (lambda: bank.draw(jax.random.key(0), numbered(4), 2.0), "n must be an int"),
        (lambda: bank.read(numbered(4), jnp.array([0, 4])), "indices 0 to 4 are outside a bank of 4 rows"),
        (lambda: bank.read(numbered(4), jnp.array([-1, 2])), "indices -1 to 2 are outside"),
        (lambda: bank.read(numbered(4), jnp.array([0.0, 2.0])), "indices must be int"),
        (lambda: bank.read(numbered(4), 2), "indices must be int"),
        (lambda: bank.replace(numbered(4), jnp.array([0, 2]), rows(1)), "for 2 indices entries of shapes"),
        (lambda: bank.replace(numbered(4), jnp.array([0, 2]), rows(3)), "for 2 indices entries of shapes"),
        (lambda: bank.replace(numbered(4), jnp.array([0]), {"z": jnp.ones((1, 3))}), "for 1 indices entries of shapes"),
        (lambda: bank.replace(numbered(4), jnp.array([0, 2]), rows(2), jnp.zeros(1, int)), r"and ages \(1,\)"),
        (lambda: bank.replace(numbered(4), jnp.array([0, 4]), rows(2)), "outside a bank of 4 rows"),
        (lambda: bank.replace(numbered(4), jnp.array([2, 2]), rows(2)), r"indices must be distinct, got \[2, 2\]"),
        (
            lambda: jax.jit(lambda i: bank.replace(numbered(4), i, rows(1)))(jnp.array([0, 2])),
            "for 2 indices entries of shapes",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_rows_that_are_not_there_are_no_rows_in_a_compiled_program():
    entries = jax.jit(lambda i: bank.read(numbered(4), i))(jnp.array([3, 4, -1]))
    assert entries["z"][0].tolist() == [3.0] * 3
    assert np.isnan(entries["z"][1:]).all()
    assert np.isnan(entries["image"][1:]).all()
    np.testing.assert_array_equal(bank.read(numbered(4), jnp.array([2, 0]))["z"][:, 0], [2.0, 0.0])


def test_draws_depend_on_the_key_and_begin_alike_for_banks_of_other_content(key):
    state = numbered(50)
    first, other = (bank.draw(k, state, 20)[0].tolist() for k in (key, jax.random.key(9)))
    assert first != other
    assert first == bank.draw(key, bank.init(jnp.zeros(50)), 20)[0].tolist()
    assert bank.draw(key, state, 0)[0].shape == (0,)


def test_rounded_size():
    assert bank.divisible_size(10_000, 128) == 9_984
    assert bank.divisible_size(100, 128) == 128


SCRIPT = textwrap.dedent(
    """
    import warnings
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from jebm import sharding
    from jebm.mcmc import bank

    warnings.simplefilter("error")
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    plain = {"bank": bank.init({"image": images, "z": images[:, 0, :, 0]}), "weights": jnp.ones((64, 3))}
    where = bank.placement(plain, rows, sharding.replicated(mesh))
    assert where["weights"].is_fully_replicated
    assert not where["bank"].entries["image"].is_fully_replicated
    odd = bank.placement(bank.init(jnp.zeros((60, 2))), rows, sharding.replicated(mesh))
    assert odd.entries.is_fully_replicated
    spread = jax.device_put(plain, where)

    def step(key, state):
        indices, entries = bank.draw(key, state["bank"], 16)
        entries = jax.tree.map(lambda a: 2 * a, entries)
        return {**state, "bank": bank.replace(state["bank"], indices, entries)}

    jitted = jax.jit(step, out_shardings=where)
    one, many = plain, spread
    for i in range(3):
        one, many = jax.jit(step)(jax.random.key(i), one), jitted(jax.random.key(i), many)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert {s.data.shape for s in many["bank"].entries["image"].addressable_shards} == {(8, 8, 8, 1)}
    program = jitted.lower(jax.random.key(0), spread).compile().as_text()
    gathered = [line for line in program.splitlines() if "all-gather" in line and "f32[64,8,8,1]" in line]
    assert not gathered, gathered  # the drawn rows travel, not the bank
    print("passed")
    """
)


def test_rows_spread_over_eight_devices():
    flags = f"--xla_force_host_platform_device_count=8 {FAST_TO_COMPILE}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "passed"
