"""Diagnostics on processes whose answers are known: AR(1) chains, chains apart, laws other than the energy's."""

import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.laws import accept, mean_test, reject

import jebm
from jebm import diagnostics
from jebm.errors import ConfigError

KEY = jax.random.key(71)


def autoregressive(rho, num_chains=8, num_draws=2000, offsets=0.0, seed=72):
    """Stationary unit AR(1) chains: ESS = N (1 - ρ) / (1 + ρ)."""
    rng = np.random.default_rng(seed)
    x = np.empty((num_chains, num_draws), np.float32)
    x[:, 0] = rng.normal(size=num_chains)
    for k in range(1, num_draws):
        x[:, k] = rho * x[:, k - 1] + np.sqrt(1 - rho**2) * rng.normal(size=num_chains)
    return x + np.float32(offsets)


def test_effective_sample_size_of_autoregressive_chains():
    found = diagnostics.summary({"a": autoregressive(0.6), "b": np.stack([autoregressive(0.0)] * 2, -1)})
    expected = 16_000 * 0.4 / 1.6
    np.testing.assert_allclose(found.ess_bulk["a"], expected, rtol=0.1)
    np.testing.assert_allclose(found.mcse["a"], np.sqrt(1 / expected), rtol=0.1)
    np.testing.assert_allclose(found.ess_bulk["b"], 16_000, rtol=0.1)
    assert found.ess_tail["a"] > found.ess_bulk["a"] / 2
    assert found.ess_bulk["b"].shape == (2,)
    np.testing.assert_allclose(found.deviation["a"], 1.0, atol=0.06)
    assert abs(found.mean["a"]) < 6 * np.sqrt(1 / expected)
    assert max(found.rhat["a"], *found.rhat["b"]) < 1.01
    assert (found.num_chains, found.num_draws, found.num_lost) == (8, 2000, 0)
    assert found.acceptance is found.bfmi is found.nested_rhat is None


def test_rhat_of_chains_apart_and_of_chains_that_drift():
    apart = autoregressive(0.0, 2, offsets=[[0.0], [1.5]])
    # of ranks, not of values: near sqrt(1 + Δ²/2 / ...) but for the tails' compression
    assert 1.3 < diagnostics.summary(apart).rhat < 1.7
    drifting = autoregressive(0.0, 4) + np.linspace(0, 3, 2000, dtype=np.float32)
    assert diagnostics.summary(drifting).rhat > 1.15
    wide = autoregressive(0.0, 4) * np.array([[1.0], [1.0], [1.0], [4.0]], np.float32)
    assert diagnostics.summary(wide).rhat > 1.1  # equal means: only the folded draws tell


def test_nested_rhat_by_its_definition_and_for_single_draws():
    shifts = np.repeat([0.0, 0.0, 0.0, 2.0], 64)[:, None]
    for draws in (1, 6):
        x = autoregressive(0.0, 256, draws, shifts)
        groups = x.reshape(4, 64, draws).astype(np.float64)
        between = groups.mean((1, 2)).var(ddof=1)
        within = np.mean([
            g.mean(1).var(ddof=1) + (np.mean([chain.var(ddof=1) for chain in g]) if draws > 1 else 0.0) for g in groups
        ])  # fmt: skip
        np.testing.assert_allclose(diagnostics.nested_rhat(x, 4), np.sqrt(1 + between / within), rtol=1e-5)
    assert diagnostics.nested_rhat(x, 4) > 1.2
    together = autoregressive(0.0, 256, 6)
    assert diagnostics.summary(together, num_superchains=4).nested_rhat < 1.01


def test_e_bfmi_of_independent_and_of_autoregressive_energies():
    """Of AR(1) energies E(ΔH)² / Var H = 2 (1 - ρ)."""
    for rho in (0.0, 0.9):
        np.testing.assert_allclose(diagnostics.e_bfmi(autoregressive(rho, 4, 8000)), 2 * (1 - rho), rtol=0.15)


def test_summary_of_a_run():
    target = jebm.energy.gaussian(jnp.array([1.0, -2.0]), jnp.array([1.6, 0.7]))
    start = jax.random.normal(KEY, (8, 2))
    state, info = jebm.sample_chains(KEY, jebm.hmc(target, 0.8, 3), start, 400, burn_in=50, positions_every=1)
    found = diagnostics.summary(info)
    np.testing.assert_array_less(np.abs(found.mean - np.array([1.0, -2.0])), 5 * found.mcse)
    np.testing.assert_allclose(found.acceptance, info["acceptance"].mean(1), rtol=1e-6)
    assert (found.bfmi > 0.5).all()
    assert found.bfmi.shape == (8,)
    text = repr(found).splitlines()
    assert text[0].startswith("8 chains of 400 draws, acceptance 0.9")
    assert text[1].split() == ["mean", "deviation", "mcse", "ess_bulk", "ess_tail", "rhat"]
    assert sorted(line.split()[0] for line in text[2:]) == ["[0]", "[1]"]
    # an energy with a slow coordinate: it stands first
    slow = np.stack([autoregressive(0.0, 4, 100), autoregressive(0.0, 4, 100, np.arange(4.0)[:, None])], -1)
    assert repr(diagnostics.summary({"position": slow})).splitlines()[2].split()[0] == "[1]"
    many = repr(diagnostics.summary(np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)))
    assert many.splitlines()[-1] == "... the 12 coordinates of largest R-hat of 40"
    assert len(many) < 2000


def test_lost_chains_are_counted_and_stay_nan():
    x = autoregressive(0.0, 4, 50)
    x[2, 30:] = np.nan
    both = np.stack([x, autoregressive(0.0, 4, 50)], -1)
    with pytest.warns(UserWarning, match="^1 of 4 chains left the finite numbers") as caught:
        found = diagnostics.summary(both)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found.num_lost == 1
    for name in ("mean", "deviation", "mcse", "ess_bulk", "ess_tail", "rhat"):
        assert np.isnan(getattr(found, name)).tolist() == [True, False], name
    assert "1 left the finite numbers" in repr(found)


# Stein discrepancy


def skewed(x):
    """The energy of log g, g ~ Gamma(1.5, 1), asymmetric; at temperature 1/2 that of Gamma(3, 2)."""
    return jnp.sum(jnp.exp(x) - 1.5 * x)


def stein_batches(energy, draws, **options):
    run = jax.vmap(lambda x: diagnostics.kernel_stein_discrepancy(energy, x, **options))
    return jax.jit(run)(jnp.asarray(draws, jnp.float32).reshape(-1, 8, *draws.shape[1:]))


def expected_stein(score, density, scale, reach):
    """The double integral of u(x, y) by quadrature, from k and its derivatives written out again."""
    x = np.linspace(*reach, 1201)
    w = density(x)
    w = w / w.sum()
    r = x[:, None] - x
    k = (scale**2 + r**2) ** -0.5
    dx, dy = -r * k**3, r * k**3
    dxy = k**3 - 3 * r**2 * k**5
    u = score(x)[:, None] * score(x) * k + score(x)[:, None] * dy + score(x) * dx + dxy
    return w @ u @ w


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.5, 0.7)])
def test_stein_discrepancy_is_zero_on_the_target_and_known_beside_it(temperature, scale):
    rng, shape = np.random.default_rng(73), 1.5 / temperature
    draws = np.log(temperature * rng.gamma(shape, size=(8 * 4096, 1)))
    given = {"temperature": temperature, "scale": scale}
    accept(mean_test(stein_batches(skewed, draws, **given), 0.0))
    shifted = stein_batches(skewed, 0.6 * draws + 0.5, **given)
    log_density = lambda y: shape * y - np.exp(y) / temperature  # noqa: E731
    expected = expected_stein(
        lambda x: (1.5 - np.exp(x)) / temperature, lambda x: np.exp(log_density((x - 0.5) / 0.6)), scale, (-6.0, 3.0)
    )
    accept(mean_test(shifted, expected))
    reject(mean_test(shifted, 0.0))


def test_stein_discrepancy_in_two_dimensions_and_on_pytrees():
    """On N(0, I) of draws of N(μ, I): E[u] = E[k] ‖μ‖², since E_q[u(·, y)] only keeps the score's difference."""
    rng, shift = np.random.default_rng(74), np.array([0.6, -0.3])
    x, y = rng.normal(size=(2, 10**6, 2))
    kernel = (1 + np.square(x - y).sum(1)) ** -0.5
    expected = kernel.mean() * (shift @ shift)
    draws = rng.normal(size=(8 * 4096, 2)) + shift
    accept(mean_test(stein_batches(jebm.energy.standard_normal, draws), expected))
    one = jnp.asarray(draws[:32], jnp.float32)
    np.testing.assert_allclose(
        diagnostics.kernel_stein_discrepancy(jebm.energy.standard_normal, {"a": one[:, :1], "b": one[:, 1]}),
        diagnostics.kernel_stein_discrepancy(jebm.energy.standard_normal, one), rtol=1e-4,
    )  # fmt: skip


# ArviZ


def test_to_arviz_hands_over_groups(monkeypatch):
    given = []
    fake = types.ModuleType("arviz")
    fake.from_dict = lambda *groups, **named: given.append((groups, named)) or "data"
    monkeypatch.setitem(sys.modules, "arviz", fake)
    info = {
        "position": {"z": jnp.zeros((3, 5, 2))}, "energy": jnp.ones((3, 5)), "acceptance": jnp.ones((3, 5)),
        "hamiltonian": 2.0 * jnp.ones((3, 5)), "is_divergent": jnp.zeros((3, 5), bool),
    }  # fmt: skip
    for fake.__version__ in ("0.21.0", "1.0.0"):
        assert diagnostics.to_arviz(info) == "data"
    (_, old), ((new,), _) = given
    for groups in (old, new):
        assert groups["posterior"]["z"].shape == (3, 5, 2)
        assert {name: float(a.mean()) for name, a in groups["sample_stats"].items()} == {
            "lp": -1.0, "acceptance_rate": 1.0, "energy": 2.0, "diverging": 0.0,
        }  # fmt: skip
    diagnostics.to_arviz({"position": jnp.zeros((3, 5))})
    assert list(given[-1][0][0]["posterior"]) == ["x"]


@pytest.fixture
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own announcements
        return pytest.importorskip("arviz", reason="ArviZ is not installed: pip install arviz")


def test_summary_is_that_of_arviz(arviz):
    """Correlated draws of three chains, the third shifted; a skewed coordinate."""
    slow = autoregressive(0.7, 3, 500, [[0.0], [0.0], [0.4]])
    position = {"a": slow, "b": np.stack([np.exp(autoregressive(0.2, 3, 500, seed=75)), slow], -1)}
    hamiltonian = autoregressive(0.5, 3, 500, seed=76)
    info = {"position": position, "hamiltonian": hamiltonian, "energy": slow, "acceptance": np.full((3, 500), 0.7)}
    ours, data = diagnostics.summary(info), diagnostics.to_arviz(info)
    assert data.posterior["b"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(data.posterior["b"], position["b"])
    np.testing.assert_array_equal(data.sample_stats["lp"], -slow)
    assert float(data.sample_stats["acceptance_rate"].mean()) == pytest.approx(0.7)
    theirs = {
        "rhat": arviz.rhat(data), "ess_bulk": arviz.ess(data, method="bulk"),
        "ess_tail": arviz.ess(data, method="tail"), "mcse": arviz.mcse(data),
    }  # fmt: skip
    for name, expected in theirs.items():
        for leaf in ("a", "b"):
            found = getattr(ours, name)[leaf]
            np.testing.assert_allclose(found, expected[leaf], rtol=2e-3 if name == "rhat" else 2e-2, err_msg=name)
    np.testing.assert_allclose(ours.bfmi, arviz.bfmi(data), rtol=1e-2)


def test_arviz_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ConfigError, match="needs ArviZ, which is not installed: pip install arviz") as error:
        diagnostics.to_arviz({"position": jnp.zeros((3, 5))})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diagnostics.summary({"energy": jnp.zeros((2, 9))}), "sample with positions_every=1"),
        (lambda: diagnostics.summary(jnp.zeros(9)), r"leaves \[chains, draws, ...\]"),
        (lambda: diagnostics.summary(jnp.zeros((2, 3))), "at least 4 draws of each chain, got 3"),
        (lambda: diagnostics.nested_rhat(jnp.zeros((6, 3)), 4), "4 superchains must divide 6 chains"),
        (lambda: diagnostics.nested_rhat(jnp.zeros((4, 1)), 4), "hold two or more draws"),
        (lambda: diagnostics.e_bfmi(jnp.zeros(4)), r"hamiltonian must be \[chains, draws\]"),
        (lambda: diagnostics.kernel_stein_discrepancy(skewed, jnp.zeros((1, 1))), "at least two draws, got 1"),
        (lambda: diagnostics.kernel_stein_discrepancy(skewed, jnp.zeros((4, 1)), 0.0), "temperature must be above 0"),
        (lambda: diagnostics.kernel_stein_discrepancy(skewed, jnp.zeros((4, 1)), scale=0.0), "scale must be above"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
