"""Step sizes that a trained energy asks for: by acceptance for MALA and HMC, by drift against noise for short runs."""

import time

import jax
from jax import Array

from jebm import mcmc
from jebm.evaluation.records import Record, cost
from jebm.evaluation.subject import Subject
from jebm.mcmc.tuning import TARGETS

__all__ = ["evaluate_step_sizes"]

NUM_CHAINS = 32
NUM_STEPS = 200
NUM_INTEGRATION_STEPS = 5  # of HMC


def evaluate_step_sizes(key: Array, subject: Subject, *, num_steps: int = NUM_STEPS) -> list[Record]:
    """Records ``step_size_short_run``, ``step_size_mala`` and ``step_size_hmc`` for ``exp(-energy)``.

    All begin at generated images. The first is the η of `mcmc.short_run_step_size`, at which a Langevin step drifts
    there as far as its noise goes. The others are found by `mcmc.tune_step_size`, beginning from what the first one
    implies, and are in blackjax's units: MALA's ε is ηT, HMC's is its leapfrog step. η is in the family's own units
    (`jebm.methods.base.Chain`), as is the step size that training is configured with, which the protocol has beside the
    target and the acceptance reached.

    Raises:
        ValueError: energies whose gradients are no finite numbers.
    """
    method, temperature = subject.method, subject.method.temperature
    first_key, mala_key, hmc_key = jax.random.split(key, 3)
    first = jax.jit(lambda key, state: method.generate(key, state, NUM_CHAINS))(first_key, subject.state)
    energy = method.energy(subject.state)
    start = time.perf_counter()
    step = float(jax.jit(mcmc.short_run_step_size)(energy, first))
    shared = {
        **subject.protocol,
        "density": "exp(-energy)",
        "temperature": temperature,
        "configured_step_size": method.chain.step_size if method.chain else None,
        "started_at": "generated images",
    }
    rule = "eta at which drift and noise of a Langevin step are as long, at the start"
    about = {**shared, "rule": rule, **cost("energy", NUM_CHAINS, time.perf_counter() - start, 1)}
    records = [Record("step_size_short_run", step / temperature, NUM_CHAINS, about)]
    leapfrog = (2 * step) ** 0.5  # one step of that length proposes what MALA's does
    kernels = {
        "mala": (mala_key, mcmc.mala(energy, step), 1),
        "hmc": (hmc_key, mcmc.hmc(energy, leapfrog, NUM_INTEGRATION_STEPS), NUM_INTEGRATION_STEPS),
    }
    tune = jax.jit(mcmc.tune_step_size, static_argnames="num_steps")
    for name, (own_key, kernel, evaluations) in kernels.items():
        start = time.perf_counter()
        tuned = jax.device_get(tune(own_key, kernel, first, num_steps=num_steps)._replace(positions=None))
        about = {
            **shared,
            "rule": "dual averaging on the mean acceptance of all chains",
            "target_acceptance": TARGETS[name],
            "acceptance": float(tuned.acceptance),
            "num_steps": num_steps,
            "num_integration_steps": evaluations,
            **cost("energy", NUM_CHAINS, time.perf_counter() - start, num_steps * evaluations),
        }
        records.append(Record(f"step_size_{name}", float(tuned.step_size), NUM_CHAINS, about))
    return records
