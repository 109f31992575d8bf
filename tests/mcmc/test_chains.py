"""The loop: traces, prefixes, one key per chain, retracing, the price of a step, and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.mcmc.chains import BLOCK, SMALL

pytestmark = pytest.mark.filterwarnings("error")

KEY = jax.random.key(7)
NOISE = jax.random.normal(jax.random.key(8), (11, 2))  # where draws do not matter: compiles faster
MEAN = jnp.array([1.0, -2.0])


def kernel(step_size=0.1, **options):
    return jebm.langevin(jebm.energy.gaussian(MEAN, jnp.array([1.6, 0.7])), step_size, 0.6, **options)


def tree_equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def a_step(kernel, k, state):
    return kernel.step(jax.random.fold_in(KEY, k), state)


def a_step_of_a_block(kernel, k, state):
    block = jax.random.normal(jax.random.fold_in(KEY, k // BLOCK), (BLOCK, *state.position.shape))
    return kernel.advance(block[k % BLOCK], state)


@pytest.mark.parametrize(("size", "step"), [(2, a_step_of_a_block), (SMALL + 2, a_step)])
def test_sample_is_the_loop_over_steps(size, step):
    wide = jebm.langevin(jebm.energy.gaussian(jnp.tile(MEAN, size // 2), jnp.tile(MEAN**2, size // 2)), 0.1, 0.6)
    state, info = jebm.sample(
        KEY, wide, jnp.zeros(size), 19, trace=("energy", "gradient_norm", "displacement"), positions_every=1
    )
    by_hand, infos = wide.init(jnp.zeros(size)), []
    for k in range(19):
        by_hand, one = step(wide, k, by_hand)
        infos.append((*one, by_hand.position))
    np.testing.assert_allclose(state.position, by_hand.position, rtol=1e-5, atol=1e-6)
    assert state.step == by_hand.step == 19
    names = ("energy", "gradient_norm", "displacement", "position")
    for name, expected in zip(names, zip(*infos, strict=True), strict=True):
        np.testing.assert_allclose(info[name], jnp.stack(expected), rtol=2e-5, atol=1e-6)
    assert sorted(info) == ["displacement", "energy", "gradient_norm", "position"]


def test_a_longer_run_begins_with_the_shorter_one():
    short, long = (
        jebm.sample(KEY, kernel(), jnp.zeros(2), n, trace=("energy", "displacement"), positions_every=1)
        for n in (18, 35)
    )
    assert tree_equal(short[1], jax.tree.map(lambda a: a[:18], long[1]))
    assert tree_equal(short[0].position, long[1]["position"][17])
    assert not tree_equal(short[0].position, long[0].position)


@pytest.mark.parametrize(("num_steps", "every", "kept"), [(11, 4, [3, 7]), (8, 4, [3, 7]), (3, 4, [])])
def test_positions_every_n_steps(num_steps, every, kept):
    recorded = kernel(noise=NOISE)
    _, info = jebm.sample(KEY, recorded, jnp.zeros(2), num_steps, positions_every=every)
    _, each = jebm.sample(KEY, recorded, jnp.zeros(2), 11, positions_every=1)
    assert info["position"].shape == (len(kept), 2)
    assert info["energy"].shape == (num_steps,)
    assert tree_equal(info["position"], each["position"][jnp.array(kept, int)])


def test_no_steps_leave_the_position_and_empty_traces():
    state, info = jebm.sample(KEY, kernel(), MEAN + 1.0, 0, trace=("energy", "displacement"), positions_every=2)
    assert tree_equal(state.position, MEAN + 1.0)
    np.testing.assert_allclose(state.energy, 0.5 * (1.6 + 0.7), rtol=1e-6)
    assert {name: a.shape for name, a in info.items()} == {
        "energy": (0,),
        "displacement": (0,),
        "position": (0, 2),
    }


def test_traces_are_what_was_asked_for():
    recorded = kernel(noise=NOISE)
    assert list(jebm.sample(KEY, recorded, jnp.zeros(2), 2)[1]) == ["energy"]
    assert jebm.sample(KEY, recorded, jnp.zeros(2), 2, trace=())[1] == {}
    info = jebm.sample_chains(KEY, recorded, jnp.zeros((3, 2)), 2, trace=("displacement",), positions_every=2)[1]
    assert {name: a.shape for name, a in info.items()} == {"displacement": (3, 2), "position": (3, 1, 2)}


def test_chains_draw_the_same_alone_or_among_4096():
    x = jax.random.normal(jax.random.key(1), (4096, 2))
    many, info = jebm.sample_chains(KEY, kernel(), x, 6)
    for i in (0, 17, 4095):
        alone, own_info = jebm.sample(jax.random.fold_in(KEY, i), kernel(), x[i], 6)
        assert tree_equal(alone.position, many.position[i])
        np.testing.assert_allclose(own_info["energy"], info["energy"][i], rtol=1e-5)
    assert jnp.array_equal(jebm.chain_keys(KEY, 18)[17], jax.random.fold_in(KEY, 17))
    assert len(np.unique(np.asarray(many.position - x), axis=0)) == 4096  # no two chains share their noise


def test_a_kernel_with_a_step_of_its_own_keeps_it():
    class Silent(jebm.mcmc.LangevinKernel):
        def step(self, key, state):
            return self.advance(jax.tree.map(jnp.zeros_like, state.position), state)

    fields = [field.name for field in dataclasses.fields(Silent)]
    jax.tree_util.register_dataclass(Silent, fields, [])
    silent = Silent(**{name: getattr(kernel(), name) for name in fields})
    state, _ = jebm.sample(KEY, silent, MEAN, 2)
    np.testing.assert_allclose(state.position, MEAN, rtol=1e-6)


@pytest.mark.parametrize("parts", [(5, 16, 21), (3, 37, 2)])
def test_chains_that_go_on_draw_the_noise_of_unbroken_ones(parts):
    """At any place in a block; chains of one call may stand at different steps."""
    x = jax.random.normal(jax.random.key(1), (3, 2))
    whole, info = jebm.sample_chains(KEY, kernel(), x, 42, positions_every=1)
    last, found = x, []
    for n in parts:
        last, piece = jebm.sample_chains(KEY, kernel(), last, n, positions_every=1)
        found.append(piece["position"])
    assert tree_equal(last, whole)
    assert tree_equal(jnp.concatenate(found, 1), info["position"])
    late, _ = jebm.sample_chains(KEY, kernel(), x, 42 - parts[0], burn_in=parts[0])
    assert tree_equal(late, whole)
    early, _ = jebm.sample_chains(KEY, kernel(), x, parts[0])
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1], a[2]]), early, whole)
    ahead, _ = jebm.sample_chains(KEY, kernel(), mixed, 42 - parts[0])
    assert tree_equal(ahead.position[::2], whole.position[::2])
    assert ahead.step.tolist() == [42, 84 - parts[0], 42]


def test_leaves_share_no_noise():
    flat = jebm.langevin(lambda x: 0.0 * jnp.sum(x["a"]), 0.5)
    _, info = jebm.sample(KEY, flat, {"a": jnp.zeros(2), "b": jnp.zeros(2)}, 4096, trace=(), positions_every=1)
    steps = [np.diff(np.asarray(info["position"][name]), axis=0) for name in "ab"]
    between = np.corrcoef(np.concatenate(steps, 1).T) - np.eye(4)
    assert np.abs(between).max() < 5 / np.sqrt(4096)
    lagged = np.corrcoef(np.concatenate([steps[0][:-BLOCK], steps[0][BLOCK:]], 1).T) - np.eye(4)
    assert np.abs(lagged).max() < 5 / np.sqrt(4096)  # nor do blocks


def test_chains_go_on_over_a_mesh_and_with_recorded_noise():
    x, mesh = jax.random.normal(jax.random.key(1), (3, 2)), jebm.sharding.make_mesh(2)
    whole, _ = jebm.sample_chains(KEY, kernel(), x, 5)
    half, _ = jebm.sample_chains(KEY, kernel(), x, 2, mesh=mesh)
    last, info = jebm.sample_chains(KEY, kernel(), half, 3, mesh=mesh)
    np.testing.assert_allclose(last.position, whole.position, rtol=1e-6)
    assert last.step.tolist() == [5, 5, 5]
    assert info["energy"].shape == (3, 3)
    recorded = kernel(noise=NOISE)
    half, _ = jebm.sample(KEY, recorded, jnp.zeros(2), 4)
    last, _ = jebm.sample(KEY, recorded, half, 7)
    assert tree_equal(last, jebm.sample(KEY, recorded, jnp.zeros(2), 11)[0])


def test_recorded_noise_replaces_the_key_and_ends():
    noise = jax.random.normal(jax.random.key(2), (4, 2))
    position = jnp.zeros(2)
    for xi in noise:
        position = position - 0.1 * jnp.array([1.6, 0.7]) * (position - MEAN) + jnp.sqrt(2 * 0.1 * 0.6) * xi
    for key in (KEY, jax.random.key(8)):
        state, _ = jebm.sample(key, kernel(noise=noise), jnp.zeros(2), 4)
        np.testing.assert_allclose(state.position, position, rtol=1e-5)
    assert np.all(np.isnan(jebm.sample(KEY, kernel(noise=noise), jnp.zeros(2), 5)[0].position))


def test_keys_are_not_reused():
    x = {"z": jnp.zeros((4, 2)), "y": jnp.zeros((4, 2))}
    with jax.debug_key_reuse(True):
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key))(jax.random.key(3))
        langevin = jebm.langevin(jebm.energy.standard_normal, 0.1)
        for each in (langevin, jebm.mala(jebm.energy.standard_normal, 0.1)):
            jebm.sample_chains(jax.random.key(3), each, x, 2, trace=())


# Chains that leave the finite numbers


def quartic(x):
    return jnp.sum(x**4)


def test_lost_chains_are_counted_in_one_warning():
    x = jnp.array([[0.1, 0.2], [8.0, 0.1], [0.3, -0.2], [0.0, -9.0]])
    kernels = [jebm.langevin(quartic, 0.1, 1e-4), jebm.langevin(quartic, 0.1, 1e-4, box=None)]
    for kernel in kernels:
        with pytest.warns(UserWarning, match="^2 of 4 chains left the finite numbers") as caught:
            state, _ = jebm.sample_chains(KEY, kernel, x, 12)
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
        assert caught[0].filename == __file__
        assert np.isnan(state.position).any(1).tolist() == [False, True, False, True]  # still there to be looked at
    with pytest.warns(UserWarning, match="^1 of 1 chains left the finite numbers"):
        jebm.sample(KEY, kernels[0], x[1], 12)
    with pytest.warns(UserWarning, match="^2 of 3 chains"):  # those that fill up the mesh are not counted
        jebm.sample_chains(KEY, kernels[0], x[1:], 12, mesh=jebm.sharding.make_mesh(2))
    jebm.sample_chains(KEY, kernels[0], x[::2], 12)


def test_nothing_is_said_inside_a_compiled_program():
    kernel, x = jebm.langevin(quartic, 0.1, 1e-4), jnp.full((2, 2), 9.0)
    jax.jit(lambda x: jebm.sample_chains(KEY, kernel, x, 12)[0].position)(x)
    jax.jit(lambda x: jebm.sample(KEY, kernel, x, 12)[0].position)(x[0])
    jax.vmap(lambda x: jebm.sample(KEY, kernel, x, 12)[0].position)(x)
    program = jax.jit(lambda x: jebm.sample_chains(KEY, kernel, x, 12)).lower(x).as_text()
    assert "callback" not in program


def test_numbers_of_other_integer_types_are_taken():
    state, info = jebm.sample(KEY, kernel(noise=NOISE), jnp.zeros(2), np.int64(4), positions_every=np.int32(2))
    assert (int(state.step), info["position"].shape) == (4, (2, 2))


@pytest.mark.parametrize("options", [{"burn_in": 7, "thin": 2, "positions_every": 3}, {"mesh": 2}])
def test_a_bar_changes_no_bit(options, capfd):
    x = jax.random.normal(jax.random.key(1), (3, 2))
    if "mesh" in options:
        options = {"mesh": jebm.sharding.make_mesh(2)}
    plain = jebm.sample_chains(KEY, kernel(), x, 47, **options)
    assert capfd.readouterr().err == ""
    shown = jebm.sample_chains(KEY, kernel(), x, 47, progress=True, **options)
    total = 47 + options.get("burn_in", 0)
    assert f"100%|██████████| {total}/{total} " in capfd.readouterr().err
    assert tree_equal(plain, shown)


def test_a_bar_of_one_chain_and_of_no_steps(capfd):
    plain, shown = (
        jebm.sample(KEY, kernel(), jnp.zeros(2), 9, positions_every=2, progress=progress) for progress in (False, True)
    )
    assert tree_equal(plain, shown)
    assert "9/9" in capfd.readouterr().err
    state, info = jebm.sample(KEY, kernel(), MEAN, 0, positions_every=2, progress=True)
    assert tree_equal(state.position, MEAN)
    assert {name: a.shape for name, a in info.items()} == {"energy": (0,), "position": (0, 2)}


# Retracing and the price of a step


class Counting:
    """An energy that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, precision, x):
        self.traces += 1
        return 0.5 * jnp.sum(precision * jnp.square(x))


def test_new_parameters_step_sizes_and_temperatures_retrace_nothing():
    energy = Counting()
    x = jnp.ones((3, 2))
    bound = lambda p: jebm.energy.bind(energy, jnp.asarray(p))  # noqa: E731
    table = jebm.mcmc.table_schedule
    kernels = [
        (jebm.langevin(bound([1.0, 2.0]), 0.1, 1.0), jebm.langevin(bound([3.0, 0.5]), 0.2, 0.6)),
        (
            jebm.langevin(bound([1.0, 2.0]), table(jnp.array([0.1, 0.2])), max_drift=0.1, box=(-1.0, 2.0)),
            jebm.langevin(bound([1.0, 2.0]), table(jnp.array([0.3, 0.4])), max_drift=0.2, box=(-2.0, 3.0)),
        ),
        (jebm.mala(bound([1.0, 2.0]), 0.1), jebm.mala(bound([3.0, 0.5]), 0.2, 0.6)),
    ]
    for first, second in kernels:
        before = energy.traces
        positions = [jebm.sample_chains(KEY, first, x, 2)[0].position]
        traces = energy.traces
        positions.append(jebm.sample_chains(KEY, second, x, 2)[0].position)
        assert energy.traces == traces > before
        assert not tree_equal(*positions)


class Evaluations:
    """An energy that counts how often its gradient is computed when a compiled program runs."""

    def __init__(self):
        self.gradients = 0

        @jax.custom_vjp
        def energy(x):
            return 0.5 * jnp.sum(jnp.square(x))

        def backward(x, cotangent):
            def count(gradient):
                self.gradients += 1
                return np.asarray(gradient)

            return (jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), cotangent * x),)

        energy.defvjp(lambda x: (0.5 * jnp.sum(jnp.square(x)), x), backward)
        self.energy = energy


@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_a_training_chain_of_k_steps_costs_k_gradients(num_steps):
    counter = Evaluations()
    langevin = jebm.langevin(counter.energy, 0.1)
    run = jax.jit(lambda key, x: jebm.sample(key, langevin, x, num_steps)[0].position)
    run(KEY, jnp.ones(2)).block_until_ready()
    assert counter.gradients == num_steps


def test_a_chain_whose_state_is_kept_costs_one_gradient_more():
    counter = Evaluations()
    state, _ = jebm.sample(KEY, jebm.langevin(counter.energy, 0.1), jnp.ones(2), 6)
    np.testing.assert_allclose(state.gradient, state.position, rtol=1e-6)
    assert counter.gradients == 7


def test_the_cached_gradient_is_that_of_the_position():
    state = kernel().init(jnp.zeros(2))
    for k in range(3):
        state, _ = kernel().step(jax.random.fold_in(KEY, k), state)
        np.testing.assert_allclose(state.gradient, jax.grad(kernel().energy)(state.position), rtol=1e-6)


# Errors


PAIR = {"a": jnp.zeros(2), "b": jnp.zeros(3)}


def run_on(position, **options):
    return lambda: jebm.sample(KEY, jebm.langevin(jebm.energy.standard_normal, **options), position, 2)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), -1), "num_steps"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 2, positions_every=-1), "positions_every"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 2, trace=("enrgy",)), "has no \\['enrgy'\\]"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 0, trace=("enrgy",)), "has no \\['enrgy'\\]"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 1e3), "num_steps must be an int of at least 0, got 1000.0"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 2.5), "num_steps must be an int .* got 2.5"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), True), "num_steps must be an int .* got True"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), "3"), "num_steps must be an int"),
        (lambda: jax.jit(lambda n: jebm.sample(KEY, kernel(), jnp.zeros(2), n)[0])(3), "num_steps must be an int"),
        (lambda: jebm.sample(KEY, kernel(), jnp.zeros(2), 2, positions_every=1.0), "positions_every must be an int"),
        (lambda: jebm.sample_chains(KEY, kernel(), jnp.zeros((3, 2)), 2.5), "num_steps must be an int"),
        (lambda: jebm.sample_chains(KEY, kernel(), jnp.zeros((3, 2)), 2, positions_every=0.5), "positions_every must"),
        (lambda: jebm.chain_keys(KEY, 2.0), "num_chains must be an int"),
        (lambda: jebm.sharding.make_mesh(2.0), "num_devices must be an int of at least 1"),
        (lambda: jebm.sharding.make_mesh(2, fsdp=0), "fsdp must be an int of at least 1"),
        (lambda: jebm.sharding.make_mesh(2, fsdp=3), "do not divide"),
        (lambda: jebm.sample_chains(KEY, kernel(), jnp.zeros(()), 2), "leading chain axis"),
        (lambda: jebm.sample_chains(KEY, kernel(), PAIR, 2), "leading chain axis"),
        (lambda: jebm.sample(KEY, jebm.langevin(lambda x: jnp.square(x)), jnp.zeros(2), 2), "one scalar"),
        (run_on(jnp.zeros(2, int)), "floating"),
        (run_on(jnp.zeros(2), step_size=-0.1), "step_size must be at least 0, got -0.1"),
        (run_on(PAIR, step_size={"a": 0.1, "b": jnp.array([0.1, -0.1, 0.2])}), "must be at least 0"),
        (run_on(jnp.zeros(2), temperature=-1.0), "temperature must be at least 0"),
        (run_on(jnp.zeros(2), max_drift=0.0), "max_drift must be above 0"),
        (run_on(PAIR, step_size={"a": 0.1}), "one entry per leaf"),
        (run_on(PAIR, step_size={"a": 0.1, "b": jnp.full(2, 0.1)}), "one entry per leaf"),
        (run_on(jnp.zeros(2), step_size=jnp.full((3, 2), 0.1)), "one entry per leaf"),
        (run_on(PAIR, max_drift=[0.1, 0.2]), "one entry per leaf"),
        (run_on(jnp.zeros(2), box=(1.0, 1.0)), "low must be below high"),
        (run_on(jnp.zeros(2), box=(0.0, jnp.inf)), "both finite or both infinite"),
        (run_on(PAIR, box=({"a": 0.0}, {"a": 1.0, "b": 1.0})), "same entries"),
        (run_on(jnp.zeros(2), noise=jnp.zeros((2, 3))), "noise must be as the position"),
        (lambda: jebm.sharding.make_mesh(1000), "1000 devices"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named_in_one_line(run, message):
    with pytest.raises(ValueError, match=message) as error:
        run()
    assert "\n" not in str(error.value)
