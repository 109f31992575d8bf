"""Faults of `jebm.training`: rules of recovery, monitors, what is carried over a break."""

from .mutant import of

RULES = tuple(
    f"tests/training/test_recovery.py::{name}" for name in (
        "test_rules", "test_rules_need_enough_lines_and_can_be_turned_off", "test_a_stuck_gap", "test_back_off",
        "test_a_ratio_that_healthy_lines_would_exceed",
    )
)  # fmt: skip
RUNS = ("tests/training/test_recovery.py",)
RESUMED = ("tests/training/test_loop.py::test_terminated_and_started_again", "tests/runs/test_lifecycle.py")

MUTANTS = (
    *of(
        "jebm/training/recovery.py", RULES,
        ("history = history[-WINDOW:]", "history = history[:WINDOW]", "the oldest lines"),
        ("value > rules.update_ratio > 0", "value < rules.update_ratio", "small updates are reported"),
        ("if not math.isfinite(value))", "if math.isnan(value))", "infinities are healthy"),
        ("if rules.gap_deviations and len(past) >= ENOUGH", "if rules.gap_deviations and len(past) > ENOUGH",
         "one line more than enough"),
        ("max(deviation, 0.01 *", "min(deviation, 0.01 *", "the smaller allowance"),
        ("deviation = statistics.median(abs", "deviation = statistics.mean(abs", "the mean deviation"),
        ("a * b > 0 and abs(b) > abs(a)", "abs(b) > abs(a)", "gaps of changing sign are stuck"),
        ("a * b > 0 and abs(b) > abs(a)", "a * b > 0 and b > a", "gaps below 0 are never stuck"),
        ("[-rules.stuck_lines - 1 :]", "[-rules.stuck_lines :]", "the rule of stuck gaps never fires"),
        ("not median / rules.ratio <= line[name]", "not 0.0 <= line[name]", "nothing collapses"),
        ("if median > 0 and not median", "if median > line[name] and not median", "nothing explodes"),
        ('word = "exploded" if line[name] > median', 'word = "exploded" if line[name] < median', "words swapped"),
        ("recovery.learning_rate_factor**attempt", "recovery.learning_rate_factor", "every attempt as the first"),
        ("added = attempt * recovery.energy_regularization", "added = recovery.energy_regularization",
         "the term is added once"),
        ("recovery.step_size_factor**attempt", "recovery.learning_rate_factor**attempt",
         "step sizes by the rates' factor"),
        ("(v * factor, first) for", "(v, first) for", "rates in rows do not back off"),
        ('"displacement", "drift"))', '"displacement"))', "drifts are not watched"),
    ),
    *of(
        "jebm/training/loop.py", RUNS,
        ("config.training.seed + attempt * 0x", "config.training.seed + 0 * 0x", "the same order of data again"),
        ("key = jax.random.fold_in(jax.random.fold_in(point.state.key, 2**32 - 1), event.attempt)",
         "key = point.state.key", "the same keys again"),
        ("for s in files.checkpoints.steps() if s < step]", "for s in files.checkpoints.steps()]",
         "an unhealthy checkpoint is gone on from"),
        ('"history": history}', '"history": []}', "the rules forget over a break"),
        ("jax.random.fold_in(state.key, state.step))", "state.key)", "every step draws the same",
         ("tests/training/test_loop.py::test_what_a_run_leaves_behind", "tests/runs/test_lifecycle.py",
          "tests/methods/test_keys.py")),
        ("loader.batches(start, settings.num_steps - start,", "loader.batches(0, settings.num_steps - start,",
         "the data begin again after a break", RESUMED),
        ("seed = (config.training.seed +", "seed = (0 * config.training.seed +", "the seed does not order the data",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
        ("history = [*history, recovery.watched(values)]", "history = [recovery.watched(values)]",
         "a history of one line"),
        ("horizontal_flip=config.data.flip", "horizontal_flip=False", "no flips",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
        ("fold_in(state.key, GRID_FOLD), state.method)", "fold_in(state.key, GRID_FOLD), point.state.method)",
         "grids of the first state",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
    ),
    *of(
        "jebm/runs/run.py", ("tests/methods/hat/test_generator_runs.py",),
        ("if kept is None or [c.method for c in kept.configs] == [c.method for c in configs]:", "if True:",
         "old weights in a changed architecture"),
        ("method = methods.build(config, method.generator(state.method))", "pass", "a loaded run draws no new state"),
        ("_kept_generator(directory) or frozen_generator(config)\n", "frozen_generator(config)\n",
         "a run cannot be read without the other one"),
        ("configs = (run.config, *(below[0] if below else ()))", "configs = (run.config,)",
         "the run below the other one is not kept"),
    ),
    *of(
        "jebm/runs/metrics_log.py", ("tests/training/test_loop.py",),
        ('if line["step"] <= step and', 'if line["step"] < step and', "the last line before a break is lost"),
        ("None if isinstance(v, float) and not math.isfinite(v) else v", "v", "NaN in JSON"),
    ),
    *of(
        "jebm/runs/state.py", ("tests/training/test_loop.py::test_the_fingerprint_sees_every_bit",),
        ("bits.astype(jnp.uint32) * weights", "bits.astype(jnp.uint32)", "an order is not seen"),
        ("unsigned = jnp.dtype", "leaf = jnp.where(leaf == 0, jnp.zeros_like(leaf), leaf)\n    unsigned = jnp.dtype",
         "-0 is 0"),
    ),
    *of(
        "jebm/training/monitors.py", ("tests/training/test_recovery.py", "tests/training/test_loop.py"),
        ("(change / (norm + 1e-30))", "(norm / (change + 1e-30))", "the ratio upside down"),
        ('metrics["energy_data"] - metrics["energy_negative"]', 'metrics["energy_negative"] - metrics["energy_data"]',
         "the energy gap's sign"),
        ("method.temperature * energies", "energies", "the probe's energy in other units",
         ("tests/methods/test_protocol.py",)),
        ("jnp.max(bank.ages)", "jnp.min(bank.ages)", "the youngest for the oldest", ("tests/runs/test_lifecycle.py",)),
    ),
    *of(
        "jebm/methods/diagnostics.py", ("tests/methods/hat/test_iteration.py", "tests/methods/ec/test_iteration_vae.py",
                                     "tests/methods/denoising/test_iteration.py"),
        ("jnp.sqrt(jnp.mean(jnp.square(ends - starts)))", "jnp.mean(jnp.square(ends - starts))", "not the root"),
        ("jnp.abs(images) >= 1.0", "jnp.abs(images) < 1.0", "pixels inside the range"),
        ("jnp.mean(norms[:half]), \"negative_gradient_norm\": jnp.mean(norms[half:])",
         "jnp.mean(norms[half:]), \"negative_gradient_norm\": jnp.mean(norms[:half])", "data and negatives swapped"),
    ),
    *of(
        "jebm/planning/hlo.py", ("tests/planning/test_hlo.py",),
        ("times * _trip_count(line,", "_trip_count(line,", "loops in loops counted once"),
        ("times * _multiplications(line, operands) * 2", "_multiplications(line, operands) * 2", "a loop counted once"),
        ("% dilation == 0) & (places >= 0)", "% dilation == 0)", "products with the padding before"),
        ("if all(part.looped for part in parts)", "if any(part.looped for part in parts)",
         "a collective beside a loop counted inside"),
    ),
    *of(
        "jebm/runs/drawing.py", ("tests/runs/test_drawing.py",),
        ("rows = -(-n // mesh.size) * mesh.size", "rows = n", "numbers that do not divide are not spread"),
    ),
    *of(
        "jebm/methods/shared.py", ("tests/training/test_communication.py",),
        ("params=sharding.constrain_copied(node.params)", "params=node.params", "loops gather the weights"),
    ),
)  # fmt: skip
