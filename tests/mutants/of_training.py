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

OPERATIONS = ("tests/training/test_operations.py",)
REMOTE = tuple(
    f"tests/runs/test_remote.py::{name}" for name in (
        "test_a_file_is_written_whole_or_not_at_all",
        "test_lines_are_sent_now_and_then_at_a_checkpoint_and_at_the_end",
    )
)  # fmt: skip

MUTANTS = (
    *of(
        "jebm/training/operations.py", OPERATIONS,
        ("return 2.0 * math.prod(shapes[2])", "return math.prod(shapes[2])", "an operation for two, in products"),
        ("for axis in contracted", "for axis in contracted[1:]", "nothing is contracted"),
        ('times = parameters["length"] if name == "scan"', 'times = 1 if name == "scan"', "loops run once"),
        ("return max((count(branch)", "return sum((count(branch)", "all branches run",),
        ('np.arange(taps) * spread) - before', 'np.arange(taps) * spread)', "padding is read"),
        ("(where % dilation == 0) &", "(where >= 0) &", "zeros between pixels are multiplied"),
        ("return 2.0 * rows * channels", "return 2.0 * channels", "one image of a batch"),
        ("return math.nan if any", "return 1.0 if any", "loops of unknown length run once"),
    ),
    *of(
        "jebm/training/meters.py", OPERATIONS,
        ("round(rate / (devices * peak), 5)", "round(rate / peak, 5)", "one device's peak for all"),
        ("if peak is None or not math.isfinite(operations)", "if peak is None", "a share that nobody knows"),
    ),
    *of(
        "jebm/runs/metrics_log.py", REMOTE,
        ("if self._written < len(self._lines):", "if not self._written:", "new lines are not sent"),
        ("if time.monotonic() - self._time >= INTERVAL:", "if True:", "every line is sent"),
        ("return _Kept(path, path.read_text() if path.exists() else \"\")", "return _Kept(path, \"\")",
         "the lines of before are lost"),
    ),
    *of(
        "jebm/training/writers.py", ("tests/training/test_writers.py",),
        ("purge_step=start + 1", "purge_step=None", "steps that are trained again are shown twice"),
        ("json.loads(note.read_text())[\"id\"]", "secrets.token_hex(8)", "a resumed run is another"),
    ),
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
        "jebm/training/attempt.py", RUNS,
        ("config.training.seed + attempt * 0x", "config.training.seed + 0 * 0x", "the same order of data again"),
        ('"history": history}', '"history": []}', "the rules forget over a break"),
        ("loader.batches(start, settings.num_steps - start,", "loader.batches(0, settings.num_steps - start,",
         "the data begin again after a break", RESUMED),
        ("seed = (config.training.seed +", "seed = (0 * config.training.seed +", "the seed does not order the data",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
        ("history = [*history, recovery.watched(values)]", "history = [recovery.watched(values)]",
         "a history of one line"),
        ("fold_in(state.key, GRID_FOLD), state.method)", "fold_in(state.key, GRID_FOLD), point.state.method)",
         "grids of the first state",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
    ),
    *of(
        "jebm/training/loop.py", RUNS,
        ("key = jax.random.fold_in(jax.random.fold_in(point.state.key, 2**32 - 1), event.attempt)",
         "key = point.state.key", "the same keys again"),
        ("for s in files.checkpoints.steps() if s < step]", "for s in files.checkpoints.steps()]",
         "an unhealthy checkpoint is gone on from"),
    ),
    *of(
        "jebm/training/step.py", RUNS,
        ("jax.random.fold_in(state.key, state.step))", "state.key)", "every step draws the same",
         ("tests/training/test_loop.py::test_what_a_run_leaves_behind", "tests/runs/test_lifecycle.py",
          "tests/methods/test_keys.py")),
        ("horizontal_flip=config.data.flip", "horizontal_flip=False", "no flips",
         ("tests/training/test_loop.py", "tests/runs/test_lifecycle.py")),
        ("with multiplying(config):", "if True:", "the precision of products is not asked for",
         ("tests/training/test_step.py",)),
    ),
    *of(
        "jebm/training/meters.py", ("tests/training/test_meters.py",),
        ("self._mark[1] - self._paused", "self._mark[1]", "samples and checkpoints slow a training down"),
        ("self._mark, self._paused = (step, self._now()), 0.0", "self._mark = (step, self._now())",
         "pauses of all windows"),
        ("steps, seconds = step - self._mark[0],", "steps, seconds = step,", "all steps in the time of a window"),
        ("a.sharding.shard_shape(a.shape)", "a.shape", "the whole state on each device"),
    ),
    *of(
        "jebm/sharding.py", ("tests/package/test_launch.py",),
        ("place * share, (place + 1) * share", "0, share", "tasks of a node drive the same GPUs"),
        ("count < int(on_node)", "False", "GPUs that SLURM has bound to a task are divided again"),
        ("range(int(part[2] or 1))", "range(1)", "nodes of the same number of tasks are one"),
    ),
    *of(
        "jebm/sharding.py", ("tests/training/test_mesh.py",),
        ("LOST = 75", "LOST = 0", "a lost process looks like the end of the work"),
        ('client.key_value_set(f"{name}/begun/{number}", problem)',
         'client.key_value_set(f"{name}/begun/{number}", "")', "processes begin what one of them cannot"),
    ),
    *of(
        "jebm/commands/hosts.py", ("tests/training/test_mesh.py",),
        ('held["draw"](key, request["i"], request["size"])', 'held["draw"](key, 0, request["size"])',
         "other processes draw another batch"),
    ),
    *of(
        "jebm/training/identity.py", ("tests/training/test_mesh.py", "tests/training/test_loop.py"),
        ('return _odd(hosts, ("versions", "devices")) or _problem(hosts)', "return _problem(hosts)",
         "what differs hides behind what it causes"),
    ),
    *of(
        "jebm/methods/accumulation.py", ("tests/methods/test_accumulation.py",),
        ("a / microbatches, total", "a, total", "the sum of the gradients"),
        ("jnp.mean(a, axis=0), means)", "a[-1], means)", "metrics of the last microbatch"),
        ("lambda a: jnp.swapaxes(a, 0, 1).reshape(-1", "lambda a: a.reshape(-1", "rows in the order of the parts"),
        ("jnp.swapaxes(a.reshape(a.shape[0] // number, number, *a.shape[1:]), 0, 1)",
         "a.reshape(number, a.shape[0] // number, *a.shape[1:])", "rows that follow one another"),
        ("jax.tree.map(jnp.add, total, found), aux", "found, aux", "the gradient of the last microbatch"),
    ),
    *of(
        "jebm/runs/run.py", ("tests/methods/hat/test_generator_runs.py",),
        ("if kept is None or [c.method for c in kept.configs] == [c.method for c in configs]:", "if True:",
         "old weights in a changed architecture"),
        ("method = methods.build(config, method.generator(state))", "pass", "a loaded run draws no new state"),
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
        ("bits ^ _mix(position + jnp.uint32(1))", "bits", "an order is not seen"),
        ("mixed = _mix(bits ^ _mix(position + jnp.uint32(1)))", "mixed = bits * (position * 2 + 1)",
         "a doubling is not seen"),
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
        ('"__cudnn$convBackwardInput": (0, 2, 1)', '"__cudnn$convBackwardInput": (1, 2, 0)', "a gradient as a value"),
        ('"bfloat16" if narrow else', '"default" if narrow else', "bfloat16 at the speed of float32"),
        ("total += sum(sum(user.sizes) for user in takes)", "total += sum(one.sizes)", "a whole bank read for a slice"),
        ("sum(2 * sum(inside[user.operands[1]].sizes) - sum(user.sizes) for user in gives)", "sum(one.sizes)",
         "a whole bank written for a few rows"),
    ),
    *of(
        "jebm/planning/programs.py", ("tests/planning/test_plan.py",),
        ("topology.chip.clock else max", "topology.chip.clock else sum", "a roofline that adds its parts"),
        ("chip.network and topology.num_hosts > 1 else chip.link", "chip.network else chip.link",
         "a node's own links as slow as the network"),
        ("count / chip.peak[name]", "count / chip.peak['bfloat16']", "float32 at the speed of bfloat16"),
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
