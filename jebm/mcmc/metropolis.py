"""MALA, HMC and NUTS: blackjax's kernels, driven by an energy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Annealed, Energy, PyTree, as_partial, require, require_int, value
from jebm.mcmc.langevin import floating

__all__ = ["BlackjaxKernel", "hmc", "mala", "nuts"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlackjaxKernel:
    """A blackjax kernel for ``p(x) ∝ exp(-E(x)/T)``, in the form of `jebm.mcmc.chains.Kernel`.

    States and infos are blackjax's own NamedTuples (``state.position``, ``info.acceptance_rate``, ...). Their
    log densities are ``-E/T``, and ``info.energy`` of HMC and NUTS is the Hamiltonian, not E.
    """

    energy: Energy
    temperature: Array | float
    parameters: dict[str, Any]
    algorithm: str = dataclasses.field(metadata={"static": True})
    num_integration_steps: int | None = dataclasses.field(metadata={"static": True})

    def init(self, position: PyTree) -> Any:
        """The blackjax state at ``position``."""
        import blackjax

        return getattr(blackjax, self.algorithm).init(jax.tree.map(floating, position), self._log_density)

    def step(self, key: Array, state: Any) -> tuple[Any, Any]:
        """One blackjax step."""
        import blackjax

        parameters = dict(self.parameters)
        if "inverse_mass_matrix" in parameters and parameters["inverse_mass_matrix"] is None:
            parameters["inverse_mass_matrix"] = jnp.ones(optax.tree.size(state.position))
        if self.num_integration_steps is not None:
            parameters["num_integration_steps"] = self.num_integration_steps
        return getattr(blackjax, self.algorithm).build_kernel()(key, state, self._log_density, **parameters)

    def _log_density(self, x: PyTree) -> Array:
        return -value(self.energy, x) / self.temperature


def mala(energy: Energy, step_size: Array | float, temperature: Array | float = 1.0) -> BlackjaxKernel:
    """The Metropolis-adjusted Langevin algorithm (``blackjax.mala``).

    The proposal is ``x - ε ∇E/T + sqrt(2ε) ξ``: the Langevin step of this library has the same drift and
    noise with ``step_size = ε / T``. The stationary law is ``exp(-E/T)`` exactly.
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

    The momenta see ``E/T``; ``inverse_mass_matrix`` is over the flattened x, by default ones.
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
    """The no-U-turn sampler (``blackjax.nuts``); ``inverse_mass_matrix`` as in `hmc`."""
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
