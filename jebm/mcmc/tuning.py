"""Step sizes found by rule: by acceptance for Metropolis kernels, by the ratio of drift to noise for short runs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Energy, PyTree, require_int, value
from jebm.errors import short_traceback
from jebm.mcmc.chains import chain_keys
from jebm.mcmc.langevin import floating
from jebm.mcmc.metropolis import BlackjaxKernel

__all__ = ["TARGETS", "Tuned", "short_run_step_size", "tune_step_size"]

TARGETS = {"mala": 0.574, "hmc": 0.8, "nuts": 0.8}  # mean acceptance


class Tuned(NamedTuple):
    """Result of `tune_step_size`.

    Attributes:
        step_size: float32 scalar.
        acceptance: mean acceptance over the second half of the steps, while the step size still moved.
        positions: where the chains ended, [chains, ...].
    """

    step_size: Array
    acceptance: Array
    positions: PyTree


@short_traceback
def tune_step_size(
    key: Array, kernel: BlackjaxKernel, positions: PyTree, num_steps: int = 200, target: float | None = None
) -> Tuned:
    """Dual averaging (blackjax's) on the acceptance rate, averaged over all chains at each step.

    Args:
        key: a typed key.
        kernel: `jebm.mala`, `jebm.hmc` or `jebm.nuts`, with the step size to begin from.
        positions: starts of the chains, a pytree with leaves [chains, ...].
        num_steps: of each chain.
        target: mean acceptance; by default that of `TARGETS`.

    Raises:
        ValueError: a target outside (0, 1), or fewer than two steps.
    """
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    target = TARGETS[kernel.algorithm] if target is None else target
    num_steps = require_int(num_steps, "num_steps", 2)
    if not 0 < target < 1:
        raise ValueError(f"target {target} must lie in (0, 1)")
    init, update, final = dual_averaging_adaptation(target)
    num_chains = jax.tree.leaves(positions)[0].shape[0]

    def body(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Array]:
        states, averaging = carry
        parameters = {**kernel.parameters, "step_size": jnp.exp(averaging.log_step_size)}
        moved = dataclasses.replace(kernel, parameters=parameters)
        states, info = jax.vmap(moved.step)(chain_keys(key, num_chains), states)
        rate = jnp.mean(info.acceptance)
        return (states, update(averaging, rate)), rate

    start = (jax.vmap(kernel.init)(positions), init(kernel.parameters["step_size"]))
    (states, averaging), rates = jax.lax.scan(body, start, jax.random.split(key, num_steps))
    return Tuned(jnp.asarray(final(averaging), jnp.float32), jnp.mean(rates[num_steps // 2 :]), states.position)


@short_traceback
def short_run_step_size(
    energy: Energy, positions: PyTree, temperature: Array | float = 1.0, drift_to_noise: float = 1.0
) -> Array:
    """The η at which a Langevin step from these positions drifts ``drift_to_noise`` times as far as its noise goes.

    A short chain without a Metropolis test has no acceptance to aim at. The rule is ``η² E‖∇E‖² = c² 2ηTD``, so
    ``η = 2 c² T D / E‖∇E‖²`` with D the number of values of an example; on a Gaussian of precision λ at stationarity it
    gives ``2c²/λ``, where c = 1 is the edge of stability: take c well below 1 for the law, near 1 for speed.

    Raises:
        ValueError: a ratio that is not above 0.

    Examples:
        >>> x = jax.random.normal(jax.random.key(0), (4096, 2))
        >>> eta = jebm.mcmc.short_run_step_size(jebm.energy.standard_normal, x)
        >>> bool(abs(eta - 2.0) < 0.2)  # 2 c² over the precision, which is 1
        True
    """
    if drift_to_noise <= 0:
        raise ValueError(f"drift_to_noise {drift_to_noise} must be above 0")
    positions = jax.tree.map(floating, positions)
    gradients = jax.vmap(jax.grad(lambda x: value(energy, x)))(positions)
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    mean_square = optax.tree.norm(gradients, squared=True) / num_chains
    return 2.0 * drift_to_noise**2 * temperature * (optax.tree.size(positions) / num_chains) / mean_square
