"""Cost of the trainer's parts in a step of any experiment.

These parts are monitors, donation, bfloat16, rematerialised energy gradients and the compile cache.

    python benchmarks/training_step.py configs/digits/ec_vae.py --repeats 20
    PYTHONPATH=tests python benchmarks/training_step.py tests/helpers/toy.py --without bfloat16

Variants of one compiled step take turns; processor time and wall time are medians over the turns, and ratios are those
of the medians. Memory is what the compiler plans for the step: arguments, results, temporaries, less what is reused.
The compile cache is timed by compiling the same step twice, the second time with an empty memory of this process.
What an energy gradient keeps is what JAX hands from the energy to its gradient, weights included, before XLA plans: on
a CPU XLA merges what is computed again with the first evaluation, on an accelerator it does not.
"""

import argparse
import functools
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from jebm import data
from jebm.config import Config, load_file, override
from jebm.methods import diagnostics
from jebm.runs import run as runs
from jebm.runs.run import load_source
from jebm.runs.state import TrainState, initial_state
from jebm.training.attempt import NUM_PROBES
from jebm.training.step import make_step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--set", metavar="KEY.PATH=VALUE", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=20)
    parts = ["bfloat16", "rematerialized", "donation", "cache"]
    parser.add_argument("--without", action="append", default=[], choices=parts)
    options = parser.parse_args()
    config = override(load_file(options.config), options.set)
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    images = load_source(config, runs.build(config).image_shape).train
    batch = data.Loader(images, config.data.batch_size).batch(0)
    probe = data.Loader(images, NUM_PROBES).batch(0)

    steps = {"monitors": compiled(config, batch, probe), "no monitors": compiled(config, batch, None, watch=False)}
    if "bfloat16" not in options.without:
        steps["bfloat16"] = compiled(override(config, ["method.dtype=bfloat16"]), batch, probe)
    if "rematerialized" not in options.without:
        rematerialized = override(config, ["method.rematerialize=true"])
        steps["rematerialized"] = compiled(rematerialized, batch, probe)
        kept = [kept_by_gradient(c, jnp.zeros(batch.shape)) / 1e6 for c in (config, rematerialized)]
        print(f"an energy gradient of the batch keeps {kept[0]:.1f} MB, rematerialised {kept[1]:.1f} MB")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    states = {name: fresh(config, batch) for name in steps}
    for repeat in range(options.repeats + 1):
        for name, (step, _) in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            if repeat:  # the first one warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    base = medians["monitors"]
    print(f"{options.config}, batch {config.data.batch_size}, {options.repeats} turns; memory as the compiler plans it")
    for name, (wall, processor) in medians.items():
        print(
            f"  {name:14s} {1e3 * wall:9.2f} ms wall {1e3 * processor:9.2f} ms processor"
            f"   ratio to the trainer's step {wall / base[0]:.3f} {processor / base[1]:.3f}"
            f"   {memory(steps[name][0]) / 1e6:8.1f} MB   compiled in {steps[name][1]:.1f} s"
        )
    if "donation" not in options.without:
        copied, _ = compiled(config, batch, probe, donate=False)
        print(f"  without donation of the old state: {memory(copied) / 1e6:.1f} MB")
    if "cache" not in options.without:
        jax.clear_caches()
        print(f"  compiled again, from the cache on disk: {compiled(config, batch, probe)[1]:.1f} s")


def compiled(config: Config, batch: Any, probe: Any, *, watch: bool = True, donate: bool = True) -> tuple[Any, float]:
    """The training step, compiled, and the seconds that took; without ``watch`` the families' monitors are left out."""
    norms, saturation = diagnostics.gradient_norms, diagnostics.saturation
    if not watch:
        diagnostics.gradient_norms = diagnostics.saturation = lambda *_: {}  # type: ignore[assignment]
    try:
        method = runs.build(config)
        step: Any = make_step(config, method, probe=probe)
        if not donate:
            step = jax.jit(step.__wrapped__)
        begun = time.perf_counter()
        state = runs.abstract_state(method, config)
        return step.lower(state, batch).compile(), time.perf_counter() - begun
    finally:
        diagnostics.gradient_norms, diagnostics.saturation = norms, saturation


def fresh(config: Config, batch: Any) -> TrainState:
    """A state to begin with."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None  # it runs once
    make = jax.jit(lambda: initial_state(runs.build(config), 0, jnp.zeros(batch.shape)), compiler_options=options)
    state: TrainState = make()
    return state


def kept_by_gradient(config: Config, images: jax.Array) -> int:
    """Bytes that the gradient of the summed energies with respect to the images keeps from the energies."""
    method = runs.build(config)
    state = runs.abstract_state(method, config).method
    total = lambda state, x: jax.vmap(method.energy(state))(x).sum()  # noqa: E731
    pulled = jax.eval_shape(lambda state, x: jax.vjp(functools.partial(total, state), x)[1], state, images)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pulled))


def memory(step: Any) -> int:
    """Bytes that a compiled step needs."""
    plan = step.memory_analysis()
    needed: int = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return needed - int(plan.alias_size_in_bytes)


if __name__ == "__main__":
    main()
