"""Training steps of the experiments at paper size on one accelerator: time, memory, share of the peak.

    python benchmarks/gpu/steps.py --data npz:data/cifar10.npz --out steps.json

Operations are those of the configurations' docstrings (direct sums); the share is of the bfloat16 matrix product
measured in the same run. Memory is the compiler's plan. Every step is the trainer's own, monitors included.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from jebm import data
from jebm.config import load_file, override
from jebm.runs import run as runs
from jebm.runs.run import load_source
from jebm.runs.state import initial_state
from jebm.training.attempt import NUM_PROBES
from jebm.training.step import make_step

EXPERIMENTS = {
    "configs/denoising_ebm/cifar10.py": 2.4e12,
    "configs/hat_ebm/cifar10_synthesis.py": 31e12,
    "configs/ec_vae/cifar10.py": 51e12,
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "TF32": (),
    "bfloat16": ("method.dtype=bfloat16",),
    "bfloat16, rematerialized": ("method.dtype=bfloat16", "method.rematerialize=true"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="SOURCE")
    parser.add_argument("--experiments", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    peak, rows = matrix_rate(), []
    print(f"{jax.devices()[0].device_kind}: bfloat16 matrix product {peak / 1e12:.0f} TFLOP/s")
    for experiment in options.experiments:
        for variant in options.variants:
            settings = [f"data.source={options.data}", *VARIANTS[variant], *options.set]
            try:
                row = measure(experiment, settings, options.repeats)
            except Exception as error:  # noqa: BLE001  one that does not fit leaves the others
                print(f"{experiment} {variant}: left out, {type(error).__name__}: {str(error).splitlines()[0][:160]}")
                continue
            flops = EXPERIMENTS.get(experiment, 0.0)
            row |= {"experiment": experiment, "variant": variant, "of the peak": flops / (row["median s"] * peak)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")
            jax.clear_caches()


def measure(experiment: str, settings: list[str], repeats: int) -> dict[str, Any]:
    """Times of the compiled step."""
    config = override(load_file(experiment), settings)
    method = runs.build(config)
    images = load_source(config, method.image_shape).train
    batch = jnp.asarray(data.Loader(images, config.data.batch_size).batch(0))
    probe = data.Loader(images, NUM_PROBES).batch(0)
    begun = time.perf_counter()
    step: Any = make_step(config, method, probe=probe).lower(runs.abstract_state(method, config), batch).compile()
    compiled = time.perf_counter() - begun
    begun = time.perf_counter()
    state = jax.block_until_ready(jax.jit(lambda: initial_state(method, 0, jnp.zeros(batch.shape)))())
    started = time.perf_counter() - begun
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begun)
    plan = step.memory_analysis()
    needed = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    needed -= plan.alias_size_in_bytes
    return {
        "batch": config.data.batch_size, "median s": statistics.median(seconds[1:]), "min s": min(seconds[1:]),
        "max s": max(seconds[1:]), "compiled in s": compiled, "first state in s": started, "planned GB": needed / 1e9,
    }  # fmt: skip


def matrix_rate(size: int = 8192) -> float:
    """Operations a second of a bfloat16 matrix product."""
    size = size if jax.default_backend() != "cpu" else 512
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds)


if __name__ == "__main__":
    main()
