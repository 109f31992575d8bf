"""Times chains on a 2-D mixture in jebm beside loops that one writes by hand in JAX, and beside torchebm.

    python benchmarks/mixture.py --num-chains 4096 --num-steps 1000

Rows: Langevin by `jebm.sample_chains`, by a `lax.scan` of the same step with one key for all chains or a key a chain
(jebm's draws), and by torchebm's sampler where it is installed; MALA by `jebm.sample_chains` and by blackjax in a
`lax.scan`. The rows take turns within each repeat, so load from elsewhere hits all of them; read the ratios of medians.
Each row's mean energy is printed: they sample one law.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import jebm

STEP_SIZE = 0.02


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-chains", type=int, default=4096)
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    problem = jebm.problems.gaussian_mixture()
    start = problem.sample(jax.random.key(0), arguments.num_chains)
    runs = {
        "langevin, jebm": jebm_langevin(problem.energy, arguments.num_steps),
        "langevin, lax.scan": scan_langevin(problem.energy, arguments.num_steps),
        "langevin, lax.scan, key a chain": scan_langevin(problem.energy, arguments.num_steps, own_keys=True),
        "mala, jebm": jebm_mala(problem.energy, arguments.num_steps),
        "mala, blackjax in lax.scan": scan_mala(problem.energy, arguments.num_steps),
    }
    if importlib.util.find_spec("torchebm") is None:
        print("torchebm: not installed, left out")
    else:
        runs["langevin, torchebm"] = torchebm_langevin(problem.energy, arguments.num_steps)

    print(f"{arguments.num_chains} chains of {arguments.num_steps} steps, {jax.device_count()} {jax.default_backend()}")
    ends = {name: run(start) for name, run in runs.items()}  # compiled here
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(start)
            seconds[name].append(time.perf_counter() - begun)
    for name, times in seconds.items():
        reference = statistics.median(seconds["mala, blackjax in lax.scan" if "mala" in name else "langevin, lax.scan"])
        median = statistics.median(times)
        each = 1e9 * median / (arguments.num_chains * arguments.num_steps)
        mean_energy = float(jax.vmap(problem.energy)(jnp.asarray(ends[name])).mean())
        print(
            f"{name:32s} {median:8.3f} s  {each:8.1f} ns a chain-step  {median / reference:6.2f} of lax.scan"
            f"  mean energy {mean_energy:.3f}"
        )


def jebm_langevin(energy: Callable, num_steps: int) -> Callable:
    """As a user writes it, energies recorded by default."""
    kernel = jebm.langevin(energy, STEP_SIZE)
    return lambda x: np.asarray(jebm.sample_chains(jax.random.key(1), kernel, x, num_steps, trace=())[0].position)


def scan_langevin(energy: Callable, num_steps: int, own_keys: bool = False) -> Callable:
    """The shortest loop: nothing recorded, one key a step for all chains.

    With ``own_keys`` each chain has its key, as in jebm, so that its draws depend neither on the number of chains nor
    on the devices; in two dimensions that is one hash more for each that a step's noise needs.
    """
    gradient = jax.vmap(jax.grad(energy))

    @jax.jit
    def run(key: jax.Array, x: jax.Array) -> jax.Array:
        chains = jebm.chain_keys(key, len(x))

        def draw(k: jax.Array, x: jax.Array) -> jax.Array:
            if own_keys:
                return jax.vmap(lambda chain: jax.random.normal(jax.random.fold_in(chain, k), x.shape[1:]))(chains)
            return jax.random.normal(jax.random.fold_in(key, k), x.shape)

        def step(x: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
            noise = draw(k, x)
            return x - STEP_SIZE * gradient(x) + jnp.sqrt(2 * STEP_SIZE) * noise, None

        return jax.lax.scan(step, x, jnp.arange(num_steps))[0]

    return lambda x: np.asarray(run(jax.random.key(1), x))


def jebm_mala(energy: Callable, num_steps: int) -> Callable:
    """As a user writes it."""
    kernel = jebm.mala(energy, STEP_SIZE)
    return lambda x: np.asarray(jebm.sample_chains(jax.random.key(1), kernel, x, num_steps, trace=())[0].position)


def scan_mala(energy: Callable, num_steps: int) -> Callable:
    """The loop of blackjax's documentation for many chains: keys split for each step and chain."""
    algorithm = blackjax.mala(lambda x: -energy(x), STEP_SIZE)

    @jax.jit
    def run(key: jax.Array, x: jax.Array) -> jax.Array:
        def step(states, key):  # type: ignore[no-untyped-def]
            return jax.vmap(algorithm.step)(jax.random.split(key, len(x)), states)[0], None

        return jax.lax.scan(step, jax.vmap(algorithm.init)(x), jax.random.split(key, num_steps))[0].position

    return lambda x: np.asarray(run(jax.random.key(1), x))


def torchebm_langevin(energy: Callable, num_steps: int) -> Callable:
    """The sampler of torchebm on the same mixture."""
    import torch
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    means, deviations, weights = (torch.tensor(np.asarray(a)) for a in energy.args[0].args)

    class Mixture(BaseModel):
        def forward(self, x):  # type: ignore[no-untyped-def]
            squared = ((x[:, None] - means) ** 2).sum(-1) / deviations**2
            return -torch.logsumexp(torch.log(weights) - 0.5 * squared - 2 * torch.log(deviations), -1)

    sampler = LangevinDynamics(model=Mixture(), step_size=STEP_SIZE, noise_scale=1.0)
    return lambda x: sampler.sample(x=torch.tensor(np.asarray(x)), n_steps=num_steps).numpy()


if __name__ == "__main__":
    main()
