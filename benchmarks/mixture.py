"""Times chains on a 2-D mixture in jebm beside loops that one writes by hand in JAX, blackjax's and torchebm's.

    python benchmarks/mixture.py --num-chains 16 256 4096 --num-steps 1000
    python benchmarks/mixture.py --torch-python /path/to/venv/bin/python    # with torch and torchebm

Rows: Langevin by `jebm.sample_chains`, with its default trace and with none; the chain inside a training step (`vmap`
of `jebm.sample` under the caller's jit, whose last energy nobody reads); a `lax.scan` of the same step with one key for
all chains, or a key a chain as jebm's draws need; blackjax's SGLD in its loop; torchebm's sampler, in an environment of
its own. MALA by `jebm.sample_chains` and by blackjax in a `lax.scan`. The rows take turns within each repeat, so load
from elsewhere hits all of them: read the ratios, which are of processor time. The first call stands apart, as it
compiles. Each row's mean energy is printed: they sample one law.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import jebm

STEP_SIZE = 0.02
REFERENCE = {"langevin": "langevin, lax.scan", "mala": "mala, blackjax in lax.scan"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-chains", type=int, nargs="+", default=[16, 256, 4096])
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-python", help="interpreter of an environment with torch and torchebm")
    arguments = parser.parse_args()
    if arguments.torch_python is None:
        print("torchebm: no --torch-python, left out")
    print(f"jax {jax.__version__}, blackjax {blackjax.__version__}, {jax.device_count()} {jax.default_backend()}")
    for num_chains in arguments.num_chains:
        compare(num_chains, arguments.num_steps, arguments.repeats, arguments.torch_python)


def compare(num_chains: int, num_steps: int, repeats: int, torch_python: str | None) -> None:
    """Times all rows and prints them."""
    problem = jebm.problems.gaussian_mixture()
    start = problem.sample(jax.random.key(0), num_chains)
    runs: dict[str, Callable] = {
        "langevin, jebm": jebm_langevin(problem.energy, num_steps),
        "langevin, jebm, no trace": jebm_langevin(problem.energy, num_steps, trace=()),
        "langevin, jebm, training chain": training_chain(problem.energy, num_steps),
        "langevin, lax.scan": scan_langevin(problem.energy, num_steps),
        "langevin, lax.scan, key a chain": scan_langevin(problem.energy, num_steps, own_keys=True),
        "langevin, blackjax sgld": sgld(problem.energy, num_steps),
        "mala, jebm": jebm_mala(problem.energy, num_steps),
        "mala, blackjax in lax.scan": scan_mala(problem.energy, num_steps),
    }
    if torch_python is not None:
        runs["langevin, torchebm"] = Torch(torch_python, problem.energy, start, num_steps)
    first = {name: timed(run, start) for name, run in runs.items()}
    rounds = [{name: timed(run, start) for name, run in runs.items()} for _ in range(repeats)]

    print(f"\n{num_chains} chains of {num_steps} steps, medians of {repeats} rounds")
    print(f"{'':34s}{'wall s':>10s}{'processor s':>13s}{'of lax.scan':>13s}{'ns a chain-step':>17s}{'first s':>9s}")
    for name in runs:
        wall, processor = (statistics.median(round[name][i] for round in rounds) for i in (0, 1))
        reference = REFERENCE[name.partition(",")[0]]
        ratio = statistics.median(round[name][1] / round[reference][1] for round in rounds)
        mean_energy = float(jax.vmap(problem.energy)(jnp.asarray(first[name][2])).mean())
        print(
            f"{name:34s}{wall:10.4f}{processor:13.4f}{ratio:13.2f}{1e9 * wall / num_chains / num_steps:17.1f}"
            f"{first[name][0]:9.2f}  mean energy {mean_energy:.3f}"
        )


def timed(run: Callable, start: jax.Array) -> tuple[float, float, np.ndarray]:
    """Wall seconds, processor seconds, and the last positions."""
    if isinstance(run, Torch):
        return run(start)
    wall, processor = time.perf_counter(), time.process_time()
    end = run(start)
    return time.perf_counter() - wall, time.process_time() - processor, end


def jebm_langevin(energy: Callable, num_steps: int, trace: tuple[str, ...] | None = None) -> Callable:
    """As a user writes it; energies are recorded by default."""
    kernel = jebm.langevin(energy, STEP_SIZE)
    return lambda x: np.asarray(jebm.sample_chains(jax.random.key(1), kernel, x, num_steps, trace=trace)[0].position)


def training_chain(energy: Callable, num_steps: int) -> Callable:
    """As a training step has it."""

    @jax.jit
    def run(key: jax.Array, kernel: jebm.mcmc.LangevinKernel, x: jax.Array) -> jax.Array:
        one = lambda key, x: jebm.sample(key, kernel, x, num_steps, trace=())[0].position  # noqa: E731
        return jax.vmap(one)(jebm.chain_keys(key, len(x)), x)

    return lambda x: np.asarray(run(jax.random.key(1), jebm.langevin(energy, STEP_SIZE), x))


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


def sgld(energy: Callable, num_steps: int) -> Callable:
    """SGLD of blackjax with the whole gradient, in the loop of its documentation."""
    algorithm = blackjax.sgld(lambda x, _: -jax.grad(energy)(x))

    @jax.jit
    def run(key: jax.Array, x: jax.Array) -> jax.Array:
        def step(x, key):  # type: ignore[no-untyped-def]
            move = lambda key, x: algorithm.step(key, x, 0, STEP_SIZE)  # noqa: E731
            return jax.vmap(move)(jax.random.split(key, len(x)), x), None

        return jax.lax.scan(step, x, jax.random.split(key, num_steps))[0]

    return lambda x: np.asarray(run(jax.random.key(1), x))


class Torch:
    """torchebm's sampler on the same mixture, in a process of its own that runs when it is told to."""

    def __init__(self, python: str, energy: Callable, start: jax.Array, num_steps: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        means, deviations, weights = map(np.asarray, energy.args)
        given = pathlib.Path(self._folder.name) / "given.npz"
        np.savez(given, start=start, means=means, deviations=deviations, weights=weights)
        script = pathlib.Path(__file__).with_name("mixture_torch.py")
        words = [python, str(script), str(given), str(num_steps), str(STEP_SIZE)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, start: jax.Array) -> tuple[float, float, np.ndarray]:
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        wall, processor = json.loads(self._process.stdout.readline())
        return wall, processor, np.load(pathlib.Path(self._folder.name) / "end.npy")


if __name__ == "__main__":
    main()
