"""Times a Langevin step of a small convolutional energy inside `lax.scan`: jebm's convolution against XLA's own.

    python benchmarks/convolution.py --channels 32 --batch 16

Prints the median time of a step for each implementation, the time to compile, and ratios. "canonical" changes the
gradient alone; "auto", the default, on a CPU moreover does 3x3 convolutions of 64 channels and more by Winograd's
algorithm, and on other backends is "xla".
"""

import argparse
import functools
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import jebm
from jebm.networks.convolution import conv_general_dilated


class SmallNetwork(nn.Module):
    """Three 3x3 convolutions, the second with stride 2, and a linear head."""

    channels: int
    implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[H, W, C] -> []."""
        convolve = functools.partial(conv_general_dilated, implementation=self.implementation)
        for strides in (1, 2, 1):
            x = nn.swish(nn.Conv(self.channels, (3, 3), strides, conv_general_dilated=convolve)(x))
        return nn.Dense(1)(x.mean((0, 1)))[0]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    images = jax.random.normal(jax.random.key(0), (arguments.batch, arguments.size, arguments.size, 3))
    params = SmallNetwork(arguments.channels, "xla").init(jax.random.key(1), images[0])
    runs = {}
    for name in ("auto", "canonical", "xla"):
        network = SmallNetwork(arguments.channels, name)
        kernel = jebm.langevin(jebm.energy.bind(network.apply, params), 0.01)
        runs[name] = functools.partial(step_seconds, kernel, images, arguments.num_steps)

    first = {name: run() * arguments.num_steps for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):  # in turns, so that load from elsewhere hits all
        for name, run in runs.items():
            times[name].append(run())
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    print(f"{jax.default_backend()}, jax {jax.__version__}, {arguments}")
    for name, median in medians.items():
        compile_seconds = max(0.0, first[name] - median * arguments.num_steps)
        print(f"{name:>9}: {1e3 * median:8.2f} ms a step, compiled in {compile_seconds:.1f} s")
    for name in ("auto", "canonical"):
        print(f"xla / {name}: {medians['xla'] / medians[name]:.2f}")


def step_seconds(kernel: jebm.mcmc.LangevinKernel, images: jax.Array, num_steps: int) -> float:
    """Wall seconds of a step, over one chain of ``num_steps``."""
    start = time.perf_counter()
    state, _ = jebm.sample_chains(jax.random.key(2), kernel, images, num_steps, trace=())
    if not bool(jnp.isfinite(jax.block_until_ready(state.position)).all()):
        raise FloatingPointError("a chain left the finite numbers")
    return (time.perf_counter() - start) / num_steps


if __name__ == "__main__":
    main()
