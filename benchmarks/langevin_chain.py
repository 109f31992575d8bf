"""Times a Langevin chain of an image energy in jebm, PyTorch (eager) and TensorFlow (graph mode), on the same weights.

    python benchmarks/langevin_chain.py --network hat32 --num-steps 100

The libraries take turns within each repeat, so load from elsewhere hits all of them; read the ratios of medians.
PyTorch and TensorFlow are optional: what is not installed is left out and named.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
from networks import NETWORKS, CountingOperations, TensorflowOperations, TorchOperations

import jebm

STEP_SIZE, TEMPERATURE = 0.01, 1e-3
PEERS = {"torch": TorchOperations, "tensorflow": TensorflowOperations}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="hat32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()

    module, network = NETWORKS[arguments.network]
    images = np.random.default_rng(0).uniform(-1, 1, (arguments.batch, 32, 32, 3)).astype(np.float32)
    params = jax.jit(module.init)(jax.random.key(0), images[0])["params"]
    energies, gradient = evaluate(module, params, images)
    counting = CountingOperations()
    network(counting, params, images)
    flops = 2 * 2 * counting.multiply_adds  # products and sums, of the energy and of its gradient

    runs = {"jebm": jebm_chain(module, params)}
    for name in arguments.peers:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed, left out")
            continue
        check, runs[name] = PEERS[name]().chain(network, params, STEP_SIZE, TEMPERATURE)
        assert_same(name, check(images), (energies, gradient))

    print(f"{arguments.network}: batch {arguments.batch}, {arguments.num_steps} steps, {jax.device_count()} device(s)")
    first = {name: timed(run, images, arguments.num_steps)[0] for name, run in runs.items()}
    rates, seconds, cpu_seconds = [], {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(arguments.repeats):
        rates.append(matrix_rate())
        for name, run in runs.items():
            wall, cpu = timed(run, images, arguments.num_steps)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
    report(arguments.num_steps * flops, statistics.median(rates), first, seconds, cpu_seconds)


def jebm_chain(module, params) -> Callable:  # type: ignore[no-untyped-def]
    """The chain as a user of jebm writes it: an energy of one example, chains by `jebm.sample_chains`."""
    energy = jebm.energy.bind(functools.partial(_apply, module), params)
    kernel = jebm.langevin(energy, STEP_SIZE, TEMPERATURE)

    def run(images: np.ndarray, num_steps: int) -> np.ndarray:
        state, _ = jebm.sample_chains(jax.random.key(1), kernel, jnp.asarray(images), num_steps, trace=())
        return np.asarray(state.position)

    return run


def _apply(module, params, x):  # type: ignore[no-untyped-def]
    return module.apply({"params": params}, x)


def evaluate(module, params, images):  # type: ignore[no-untyped-def]
    """Energies and their gradients."""
    energy = lambda params, x: jax.vmap(jax.value_and_grad(functools.partial(_apply, module, params)))(x)  # noqa: E731
    return tuple(map(np.asarray, jax.jit(energy)(params, images)))


def assert_same(name: str, theirs: tuple, ours: tuple) -> None:
    """Energies agree to 1e-4 of their norm, gradients to 1e-2: rounding puts a unit on the other side of a kink."""
    for their, our, tolerance in zip(theirs, ours, (1e-4, 1e-2), strict=True):
        difference = np.linalg.norm(their - our) / np.linalg.norm(our)
        if not difference < tolerance:
            raise AssertionError(f"{name} computes something else: relative difference {difference:.1e}")


def timed(run: Callable, images: np.ndarray, num_steps: int) -> tuple[float, float]:
    """Wall and processor seconds of one chain."""
    wall, cpu = time.perf_counter(), time.process_time()
    if not np.isfinite(run(images, num_steps)).all():
        raise FloatingPointError("a chain left the finite numbers")
    return time.perf_counter() - wall, time.process_time() - cpu


def matrix_rate(size: int = 1536) -> float:
    """Float32 operations a second of XLA's matrix product."""
    a = jnp.full((size, size), 1e-3)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    start = time.perf_counter()
    for _ in range(4):
        jax.block_until_ready(product(a, a))
    return 4 * 2 * size**3 / (time.perf_counter() - start)


def report(flops: float, rate: float, first: dict, seconds: dict, cpu_seconds: dict) -> None:
    """A line per library."""
    ours = statistics.median(seconds["jebm"])
    our_cpu = statistics.median(cpu_seconds["jebm"])
    print(f"{flops / 1e9:.0f} GFLOP a chain, directly summed; matrix product {rate / 1e9:.0f} GFLOP/s")
    print("| library | median s | best s | against jebm | CPU time against jebm | of matrix rate | first call, more |")
    print("|---|---|---|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"| {name} | {median:.2f} | {min(times):.2f} | {median / ours:.2f} "
            f"| {statistics.median(cpu_seconds[name]) / our_cpu:.2f} "
            f"| {flops / median / rate:.0%} | {max(0.0, first[name] - median):.1f} s |"
        )


if __name__ == "__main__":
    main()
