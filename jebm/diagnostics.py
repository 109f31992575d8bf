"""Diagnostics of chains: have they mixed, how much are their draws worth, do they sample this energy?

    state, info = jebm.sample_chains(key, kernel, positions, 1000, burn_in=200, positions_every=1)
    jebm.diagnostics.summary(info)

R-hat and effective sample sizes are blackjax's.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from jebm.energy import Energy, PyTree, as_partial, require, require_int, value
from jebm.errors import ConfigError, short_traceback
from jebm.mcmc import warn_of_lost_chains

__all__ = ["Summary", "e_bfmi", "kernel_stein_discrepancy", "nested_rhat", "summary", "to_arviz"]

ROWS = 12  # of a summary's text


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` found; pytrees are as one position, float32 NumPy arrays.

    Attributes:
        mean: of all draws.
        deviation: standard deviation of all draws.
        mcse: Monte Carlo standard error of the mean.
        ess_bulk: effective sample size of rank-normalised draws, for means and medians.
        ess_tail: that of the 5 % and 95 % quantiles, the smaller.
        rhat: split R-hat, rank-normalised and folded; above 1.01 chains have not mixed.
        nested_rhat: nested R-hat of superchains, or None.
        acceptance: mean acceptance of each chain [chains], or None where it was not traced.
        bfmi: E-BFMI of each chain [chains], or None where there is no Hamiltonian; below 0.3 momenta are refreshed in
            vain.
        num_chains: of the draws.
        num_draws: of each chain.
        num_lost: chains that left the finite numbers.
    """

    mean: PyTree
    deviation: PyTree
    mcse: PyTree
    ess_bulk: PyTree
    ess_tail: PyTree
    rhat: PyTree
    nested_rhat: PyTree | None
    acceptance: np.ndarray | None
    bfmi: np.ndarray | None
    num_chains: int
    num_draws: int
    num_lost: int

    def __repr__(self) -> str:
        """A table of the coordinates that mixed worst."""
        shown = ["mean", "deviation", "mcse", "ess_bulk", "ess_tail", "rhat"]
        shown += ["nested_rhat"] if self.nested_rhat is not None else []
        columns = [np.concatenate([a.ravel() for a in jax.tree.leaves(getattr(self, name))]) for name in shown]
        names = [f"{jax.tree_util.keystr(path)}{_index(i)}" for path, i in _coordinates(self.mean)]
        order = np.argsort(-np.nan_to_num(columns[5], nan=np.inf), kind="stable")[:ROWS]
        head = f"{self.num_chains} chains of {self.num_draws} draws"
        head += f", {self.num_lost} left the finite numbers" if self.num_lost else ""
        head += "" if self.acceptance is None else f", acceptance {self.acceptance.mean():.3f}"
        head += "" if self.bfmi is None else f", smallest E-BFMI {self.bfmi.min():.2f}"
        rows = [["", *shown], *([names[i], *(f"{c[i]:.4g}" for c in columns)] for i in order)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        more = [f"... the {len(order)} coordinates of largest R-hat of {len(names)}"] if len(names) > ROWS else []
        return "\n".join([head, *lines, *more])


def _coordinates(tree: PyTree) -> list[tuple[Any, tuple[int, ...]]]:
    return [(path, i) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) for i in np.ndindex(leaf.shape)]


def _index(i: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, i))}]" if i else "x"


def summary(draws: PyTree, *, num_superchains: int | None = None) -> Summary:
    """Summary of chains.

    Args:
        draws: the info of `jebm.sample_chains` with ``positions_every=1`` (its ``"acceptance"`` and ``"hamiltonian"``
            are read as well, where they are), or positions alone: a pytree of leaves [chains, draws, ...].
        num_superchains: K, for the nested R-hat: chains 0, ..., n/K - 1 began at one position, the next at another.

    Returns:
        NaN wherever a chain left the finite numbers; a warning says how many did.

    Raises:
        ValueError: no positions, or fewer than four draws; superchains that do not divide the chains.

    Examples:
        >>> draws = jax.random.normal(jax.random.key(0), (4, 50, 1))  # [chains, draws, ...]
        >>> found = jebm.diagnostics.summary(draws)
        >>> found.num_chains, found.num_draws, found.num_lost
        (4, 50, 0)
        >>> bool(found.rhat[0] < 1.2)
        True
    """
    info = draws if isinstance(draws, Mapping) else {}
    positions = _positions(draws)
    leaves = jax.tree.leaves(positions)
    num_chains, num_draws = leaves[0].shape[:2]
    if num_draws < 4:
        raise ValueError(f"a summary needs at least 4 draws of each chain, got {num_draws}")
    finite = functools.reduce(jnp.logical_and, (_finite(leaf) for leaf in leaves))
    warn_of_lost_chains(finite, stacklevel=2)
    with jax.numpy_rank_promotion("allow"):  # blackjax's code relies on it
        found = [_statistics(leaf.reshape(num_chains, num_draws, -1)) for leaf in leaves]
    tree: Any = jax.tree.structure(positions)
    shaped = {
        name: tree.unflatten(
            [np.asarray(f[name]).reshape(leaf.shape[2:]) for f, leaf in zip(found, leaves, strict=True)]
        )
        for name in found[0]
    }
    nested = None if num_superchains is None else nested_rhat(positions, num_superchains)
    acceptance = np.asarray(info["acceptance"]).mean(1) if "acceptance" in info else None
    bfmi = np.asarray(e_bfmi(info["hamiltonian"])) if "hamiltonian" in info else None
    return Summary(
        **shaped, nested_rhat=nested, acceptance=acceptance, bfmi=bfmi, num_chains=num_chains, num_draws=num_draws,
        num_lost=int((~finite).sum()),
    )  # fmt: skip


def _positions(draws: PyTree) -> PyTree:
    if isinstance(draws, Mapping) and "energy" in draws and "position" not in draws:
        raise ValueError('these draws have no "position": sample with positions_every=1')
    positions = draws["position"] if isinstance(draws, Mapping) and "position" in draws else draws
    positions = jax.tree.map(jnp.asarray, positions)
    shapes = sorted({leaf.shape[:2] for leaf in jax.tree.leaves(positions)})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"positions must be leaves [chains, draws, ...] with the same first two axes, got {shapes}")
    return positions


def _finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)


@jax.jit
def _statistics(x: Array) -> dict[str, Array]:
    """Of draws [chains, draws, k]."""
    from blackjax import diagnostics

    half = x.shape[1] // 2
    split = jnp.concatenate([x[:, :half], x[:, half : 2 * half]])
    deviation = x.std((0, 1), ddof=1)
    return {
        "mean": x.mean((0, 1)),
        "deviation": deviation,
        "mcse": deviation / jnp.sqrt(diagnostics.effective_sample_size(split)),
        "ess_bulk": diagnostics.ess_bulk(x),
        "ess_tail": diagnostics.ess_tail(x),
        "rhat": diagnostics.rhat(x),
    }


def nested_rhat(positions: PyTree, num_superchains: int) -> PyTree:
    """Nested R-hat: for many short chains, even of one draw, in groups that began at one position.

    ``sqrt(1 + B / W)``: B the variance between the means of superchains, W the mean over superchains of the variance
    between their chains' means plus the mean variance within chains.

    Args:
        positions: a pytree of leaves [chains, draws, ...].
        num_superchains: K ≥ 2 that divides the chains; those of a superchain are neighbours.

    Returns:
        A pytree as one position, NumPy arrays.

    Raises:
        ValueError: superchains that do not divide the chains, or single chains of a single draw.

    References:
        Margossian et al., "Nested R-hat", Bayesian Analysis (2024), arXiv 2110.13017, definition 2.1.
    """
    num_superchains = require_int(num_superchains, "num_superchains", 2)

    def one(x: Array) -> np.ndarray:
        if len(x) % num_superchains or (len(x) == num_superchains and x.shape[1] == 1):
            raise ValueError(f"{num_superchains} superchains must divide {len(x)} chains, and hold two or more draws")
        y = np.asarray(x, np.float64).reshape(num_superchains, -1, *x.shape[1:])
        within = y.var(2, ddof=1).mean(1) if y.shape[2] > 1 else 0.0
        among = y.mean(2).var(1, ddof=1) if y.shape[1] > 1 else 0.0
        between = y.mean((1, 2)).var(0, ddof=1)
        return np.sqrt(1.0 + between / np.mean(within + among, 0))

    return jax.tree.map(one, _positions(positions))


def e_bfmi(hamiltonian: Array) -> Array:
    """Energy Bayesian fraction of missing information, ``Σ (H_n - H_{n-1})² / Σ (H_n - mean H)²``.

    Args:
        hamiltonian: [chains, draws], ``info["hamiltonian"]`` of `jebm.hmc` and `jebm.nuts`.

    Returns:
        [chains]; 2 for independent energies.

    References:
        Betancourt, "Diagnosing suboptimal cotangent disintegrations", arXiv 1604.00695, equation 3.
    """
    h = jnp.asarray(hamiltonian)
    if h.ndim != 2 or h.shape[1] < 2:
        raise ValueError(f"hamiltonian must be [chains, draws] of two or more draws, got shape {h.shape}")
    spread = jnp.square(h - h.mean(1, keepdims=True)).sum(1)
    return jnp.square(jnp.diff(h, axis=1)).sum(1) / spread


@short_traceback
def kernel_stein_discrepancy(
    energy: Energy, positions: PyTree, temperature: Array | float = 1.0, scale: Array | float = 1.0
) -> Array:
    """Squared kernel Stein discrepancy of draws from ``exp(-E/T)``: no normaliser and no samples of it are needed.

    The unbiased estimate of ``E[u(x, x')]`` over pairs of independent draws, where

        u(x, y) = s(x)ᵀ s(y) k + s(x)ᵀ ∇_y k + s(y)ᵀ ∇_x k + tr ∇_x ∇_y k,     s = -∇E/T,

    with the inverse multiquadric ``k = (c² + ‖x - y‖²)^-½``, which sees tails that escape a Gaussian kernel. Its
    expectation is 0 for draws of the target and above 0 for any other law; the estimate may be negative. It does not
    see the weights of modes that lie far apart.

    Args:
        energy: E of one example.
        positions: draws, leaves [n, ...], n ≥ 2; the cost is n² d.
        temperature: T > 0.
        scale: c > 0, a length.

    Raises:
        ValueError: fewer than two draws, or a temperature or scale that is not above 0.

    References:
        Liu, Lee and Jordan, arXiv 1602.03253; Gorham and Mackey, "Measuring sample quality with kernels", arXiv
        1703.01717.

    Examples:
        >>> right, wrong = jax.random.normal(jax.random.key(0), (200, 1)), jnp.linspace(2.0, 3.0, 200)[:, None]
        >>> of = lambda x: float(jebm.diagnostics.kernel_stein_discrepancy(jebm.energy.standard_normal, x))
        >>> of(right) < 0.1 < 1.0 < of(wrong)
        True
    """
    require(temperature, lambda a: a > 0, "temperature", "must be above 0")
    require(scale, lambda a: a > 0, "scale", "must be above 0")
    num_draws = jax.tree.leaves(positions)[0].shape[0]
    if num_draws < 2:
        raise ValueError(f"a Stein discrepancy needs at least two draws, got {num_draws}")
    return _stein(as_partial(energy), positions, temperature, scale)


@jax.jit
def _stein(energy: Energy, positions: PyTree, temperature: Array, scale: Array) -> Array:
    x = jax.vmap(lambda a: ravel_pytree(a)[0])(positions)
    gradients = jax.vmap(jax.grad(lambda a: value(energy, a)))(positions)
    score = -jax.vmap(lambda a: ravel_pytree(a)[0])(gradients) / temperature
    n, d = x.shape

    def row(i: Array) -> Array:
        offset = x[i][None] - x
        squared = jnp.square(offset).sum(1)
        q = scale**2 + squared
        scores = jnp.sum(score[i][None] * score, 1)
        along = jnp.sum((score[i][None] - score) * offset, 1)
        u = scores * q**-0.5 + along * q**-1.5 + d * q**-1.5 - 3.0 * squared * q**-2.5
        return jnp.sum(jnp.where(jnp.arange(n) == i, 0.0, u))

    return jax.lax.map(row, jnp.arange(n)).sum() / (n * (n - 1))


def to_arviz(info: Mapping[str, Any]) -> Any:
    """Draws as ArviZ's data (``pip install arviz``), for its plots and its comparisons.

    Args:
        info: of `jebm.sample_chains` with ``positions_every=1``. Positions become the posterior (leaves that have no
            name are ``x``), traces the statistics of the sampler, under ArviZ's names: ``acceptance_rate``, ``energy``
            (the Hamiltonian), ``diverging``, and ``lp`` for minus the energy.

    Raises:
        ConfigError: ArviZ is not installed.
        ValueError: no positions.
    """
    try:
        import arviz
    except ImportError:
        raise ConfigError("to_arviz needs ArviZ, which is not installed: pip install arviz") from None
    positions = _positions(info)
    posterior = {
        ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path) or "x": np.asarray(
            leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(positions)
    }
    shape = jax.tree.leaves(positions)[0].shape[:2]
    renamed: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "acceptance": ("acceptance_rate", np.asarray), "energy": ("lp", lambda a: -np.asarray(a)),
        "hamiltonian": ("energy", np.asarray), "is_divergent": ("diverging", np.asarray),
    }  # fmt: skip
    statistics = {}
    for name, trace in info.items():
        if name != "position" and jnp.shape(trace)[:2] == shape:
            new, convert = renamed.get(name, (name, np.asarray))
            statistics[new] = convert(trace)
    groups = {"posterior": posterior, "sample_stats": statistics}
    convert_all: Any = arviz.from_dict  # before 1.0 a group is a named argument
    return convert_all(groups) if int(arviz.__version__.split(".")[0]) > 0 else convert_all(**groups)
