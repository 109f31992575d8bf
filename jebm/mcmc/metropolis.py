"""MALA, HMC and NUTS: blackjax's kernels, driven by an energy; and any other algorithm of blackjax."""

import collections
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Annealed, Energy, PyTree, as_partial, require, require_int, value
from jebm.mcmc.langevin import floating

__all__ = [
    "AdaptedKernel",
    "BlackjaxKernel",
    "BlackjaxState",
    "from_blackjax",
    "hmc",
    "mala",
    "named",
    "nuts",
    "report",
]


class BlackjaxState(NamedTuple):
    """State of a chain.

    Attributes:
        algorithm: blackjax's own state.
        step: int32, the number of steps made.
    """

    algorithm: Any
    step: Array

    @property
    def position(self) -> PyTree:
        """The example; of a sequential Monte Carlo algorithm its particles."""
        return self.algorithm.position if hasattr(self.algorithm, "position") else self.algorithm.particles

    @property
    def logdensity(self) -> Array:
        """The log density at the position, where the algorithm keeps it."""
        return self.algorithm.logdensity


def report(info: Any, **first: Any) -> Any:
    """Info of a step under this library's names: the fields ``first``, then those of another kernel's ``info``.

    Of blackjax's names ``acceptance_rate`` becomes ``acceptance``, and ``energy``, which is the total energy there,
    ``hamiltonian``.
    """
    names = {"acceptance_rate": "acceptance", "energy": "hamiltonian"}
    rest = {names.get(name, name): value for name, value in info._asdict().items()}
    if "acceptance" in rest:
        first["acceptance"] = rest.pop("acceptance")
    return named(type(info).__name__, **first, **rest)


def named(type_name: str, **fields: Any) -> Any:
    """A NamedTuple of these fields; the same type for the same fields, so that programs take it as one pytree."""
    return _info_type(type_name, tuple(fields))(**fields)


@functools.cache
def _info_type(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)  # type: ignore[misc]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlackjaxKernel:
    """A blackjax kernel for ``p(x) ∝ exp(-E(x)/T)``, in the form of `jebm.mcmc.chains.Kernel`.

    The info has ``energy``, E at the new position, ``acceptance``, of HMC and NUTS ``hamiltonian``, the total energy
    ``E/T`` plus kinetic energy of the trajectory, and blackjax's other fields under their own names. The log density in
    the state is ``-E/T``.
    """

    energy: Energy
    temperature: Array | float
    parameters: dict[str, Any]
    algorithm: str = dataclasses.field(metadata={"static": True})
    num_integration_steps: int | None = dataclasses.field(metadata={"static": True})

    def init(self, position: PyTree) -> BlackjaxState:
        """The state at ``position``."""
        import blackjax

        state = getattr(blackjax, self.algorithm).init(jax.tree.map(floating, position), self._log_density)
        return BlackjaxState(state, jnp.zeros((), jnp.int32))

    def step(self, key: Array, state: BlackjaxState) -> tuple[BlackjaxState, Any]:
        """One blackjax step."""
        import blackjax

        parameters = dict(self.parameters)
        if "inverse_mass_matrix" in parameters and parameters["inverse_mass_matrix"] is None:
            parameters["inverse_mass_matrix"] = jnp.ones(optax.tree.size(state.position))
        if self.num_integration_steps is not None:
            parameters["num_integration_steps"] = self.num_integration_steps
        step = getattr(blackjax, self.algorithm).build_kernel()
        moved, info = step(key, state.algorithm, self._log_density, **parameters)
        energy = -moved.logdensity * self.temperature
        return BlackjaxState(moved, state.step + 1), report(info, energy=energy)

    def _log_density(self, x: PyTree) -> Array:
        return -value(self.energy, x) / self.temperature


def mala(energy: Energy, step_size: Array | float, temperature: Array | float = 1.0) -> BlackjaxKernel:
    """The Metropolis-adjusted Langevin algorithm (``blackjax.mala``).

    The proposal is ``x - ε ∇E/T + sqrt(2ε) ξ``: the Langevin step of this library has the same drift and
    noise with ``step_size = ε / T``. The stationary law is ``exp(-E/T)`` exactly.

    Examples:
        >>> kernel = jebm.mala(jebm.energy.standard_normal, 1e-4)
        >>> _, info = jebm.sample(jax.random.key(0), kernel, jnp.ones(2), 5)
        >>> bool((info["acceptance"] > 0.99).all())  # steps so small are accepted
        True
    """
    return _kernel("mala", energy, temperature, {"step_size": step_size})


def hmc(
    energy: Energy,
    step_size: Array | float,
    num_integration_steps: int,
    temperature: Array | float = 1.0,
    inverse_mass_matrix: Array | None = None,
) -> BlackjaxKernel:
    """Hamiltonian Monte Carlo (``blackjax.hmc``).

    The momenta see ``E/T``; ``inverse_mass_matrix`` is over the flattened x, by default ones. ``info.energy`` is E,
    ``info.hamiltonian`` the total energy.
    """
    num_integration_steps = require_int(num_integration_steps, "num_integration_steps", 1)
    parameters = {"step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix}
    return _kernel("hmc", energy, temperature, parameters, num_integration_steps)


def nuts(
    energy: Energy,
    step_size: Array | float,
    temperature: Array | float = 1.0,
    inverse_mass_matrix: Array | None = None,
) -> BlackjaxKernel:
    """The no-U-turn sampler (``blackjax.nuts``); ``inverse_mass_matrix`` and ``info`` as in `hmc`.

    The parameters that ``blackjax.window_adaptation`` finds are those of this function:
    ``jebm.nuts(energy, **parameters)``.
    """
    parameters = {"step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix}
    return _kernel("nuts", energy, temperature, parameters)


def _kernel(
    algorithm: str,
    energy: Energy,
    temperature: Array | float,
    parameters: dict[str, Any],
    num_integration_steps: int | None = None,
) -> BlackjaxKernel:
    if isinstance(energy, Annealed):
        raise ValueError(f"{algorithm} needs an energy that is the same at every step, got an annealed one")
    for name, given in (("step_size", parameters["step_size"]), ("temperature", temperature)):
        if callable(given):
            raise ValueError(f"{algorithm} needs a {name} that is the same at every step, got a schedule")
        if not jax.tree_util.all_leaves([given]) or jnp.ndim(given) != 0:
            shapes = jax.tree.map(jnp.shape, given)
            raise ValueError(f"{algorithm} needs one number as {name}, got shape {shapes}")
        require(given, lambda a: a > 0, name, "must be above 0")
    return BlackjaxKernel(as_partial(energy), temperature, parameters, algorithm, num_integration_steps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedKernel:
    """A blackjax ``SamplingAlgorithm`` in the form of `jebm.mcmc.chains.Kernel`; see `from_blackjax`."""

    initialize: Callable[..., Any]
    advance: Callable[..., Any]

    def init(self, position: PyTree) -> BlackjaxState:
        """The state at ``position``."""
        return BlackjaxState(self.initialize(jax.tree.map(floating, position)), jnp.zeros((), jnp.int32))

    def step(self, key: Array, state: BlackjaxState) -> tuple[BlackjaxState, Any]:
        """One step of the algorithm."""
        moved, info = self.advance(key, state.algorithm)
        energy = {"energy": -moved.logdensity} if hasattr(moved, "logdensity") else {}
        return BlackjaxState(moved, state.step + 1), report(info, **energy)


def from_blackjax(algorithm: Any) -> AdaptedKernel:
    """Any blackjax algorithm as a kernel: ``jebm.from_blackjax(blackjax.barker(lambda x: -energy(x), 0.1))``.

    ``info.energy`` is minus the log density that the algorithm was given, where its state keeps it. The position of a
    sequential Monte Carlo algorithm is its particles, [particles, ...]. The algorithm's functions are static: a new
    algorithm compiles again.

    Raises:
        ValueError: no ``SamplingAlgorithm``, one whose start draws random numbers (ghmc, mclmc), or one whose step
            needs more than a key and a state (tempered SMC of given temperatures).

    Examples:
        >>> import blackjax
        >>> barker = blackjax.barker(lambda x: -jebm.energy.standard_normal(x), 0.5)
        >>> state, info = jebm.sample(jax.random.key(0), jebm.from_blackjax(barker), jnp.zeros(2), 3)
        >>> sorted(info)
        ['acceptance', 'energy']
    """
    init, step = getattr(algorithm, "init", None), getattr(algorithm, "step", None)
    if not callable(init) or not callable(step):
        raise ValueError(f"from_blackjax needs a blackjax SamplingAlgorithm, got {type(algorithm).__name__}")
    if inspect.getclosurevars(init).nonlocals.get("pass_rng_key_to_init"):
        raise ValueError("from_blackjax: the start of this algorithm draws random numbers, which init(position) cannot")
    needed = [p for p in inspect.signature(step).parameters.values() if p.default is p.empty]
    if len(needed) > 2:
        raise ValueError(f"from_blackjax needs an algorithm of step(key, state), got step{inspect.signature(step)}")
    return AdaptedKernel(as_partial(init), as_partial(step))
