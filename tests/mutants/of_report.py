"""Faults of `jebm.report`, and of the speed of a training: numbers that a page or a bar would show wrongly."""

from .mutant import of


def nodes(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/report/test_page.py::test_{name}" for name in names)


PLOTS = nodes(
    "a_curve_is_where_its_axes_say", "noise_of_a_constant_looks_like_one", "running_means", "nearest_by_its_definition",
    "ticks_are_round_and_few",
)  # fmt: skip
FILMS = nodes("a_chain_is_walked_until_it_moves", "a_film_of_data_starts_under_noise")
METERS = tuple(
    f"tests/training/test_meters.py::test_{name}"
    for name in ("only_what_is_there_is_finished", "the_last_line_is_of_all_windows")
)

MUTANTS = (
    *of(
        "jebm/report/plots.py", PLOTS,
        ("(high - np.clip(ys, low, high)) / (high - low)", "(np.clip(ys, low, high) - low) / (high - low)",
         "curves upside down"),
        ("(turn(xs) - turn(left)) / (turn(right)", "(turn(xs) - turn(left) / 2) / (turn(right)",
         "curves moved to the right"),
        ("0.02 * max(abs(low), abs(high))", "0.0002 * max(abs(low), abs(high))", "noise of a constant fills the plot"),
        ("np.minimum(middle, middle[::-1])", "middle", "running means beyond the end"),
        ("/ (2 * reach + 1)", "/ (2 * half + 1)", "running means too small at the ends"),
        ("m * power >= rough", "m * power <= rough", "many ticks"),
        ("math.ceil(low / step - 1e-9)", "math.floor(low / step)", "ticks below the axis"),
        ("best = np.minimum(best,", "best = np.maximum(best,", "the farthest image of blocks"),
        ("np.sqrt(np.maximum(best, 0) / x.shape[1])", "np.maximum(best, 0) / x.shape[1]", "squared distances"),
    ),
    *of(
        "jebm/report/head.py",
        nodes("time_of_training_leaves_out_what_lies_between_its_parts", "the_headline_stands_beside_its_yardstick"),
        ("if start <= t < end]", "if start <= t]", "time between two parts counted"),
        ("max(part) - start", "max(part)", "times since 1970"),
        ("value, value / top)", "value, top / value)", "bars the other way round"),
        ("max(max(beside.values())", "max(min(beside.values())", "bars longer than their row"),
    ),
    *of(
        "jebm/report/scores.py", nodes("arrows_point_to_the_better", "a_yardstick_is_of_the_same_measurement"),
        ('other.metric == f"{record.metric}_{suffix}" and same(other, record)',
         'other.metric == f"{record.metric}_{suffix}"', "the yardstick of another measurement"),
        ('{"lower": "↓", "higher": "↑", None: ""}', '{"lower": "↑", "higher": "↓", None: ""}', "arrows the wrong way"),
    ),
    *of(
        "jebm/report/film.py", FILMS,
        ("[:, piece - 1 :: piece]", "[:, ::piece]", "energies of other steps than the frames'"),
        ("frames[::2], energies[::2], 2 * every", "frames[::2], energies[1::2], 2 * every", "energies a frame late"),
        ("x + NOISE * jax", "x + 0.0 * jax", "a film from clean data"),
        ("energies += [*along[times % every == 0]]", "energies += [*along[times % every != 0]]", "other energies kept"),
    ),
    *of(
        "jebm/report/live.py", nodes("a_report_takes_a_small_part_of_the_time"),
        ("begun + took / SHARE", "begun + took * SHARE", "a report that takes all the time"),
        ("if begun >= next_at:", "if begun <= next_at:", "only the first report"),
    ),
    *of(
        "jebm/training/meters.py", METERS,
        ("while self._running and self._running[0][1].is_ready()", "while self._running",
         "what is dispatched counts as finished"),
        ("self._all_seconds + seconds\n", "seconds\n", "the speed of the last window only"),
        ("self._all_steps * self._batch_size / max", "self._all_steps / max", "steps for images"),
        ("self._compiling = self._mark[1] - self._begun", "self._compiling = self._mark[1]", "times of no beginning"),
    ),
    *of(
        "jebm/runs/starts.py", nodes("durations", "starts_are_rows_that_stay"),
        ("whole // 60 % 60", "whole // 60", "minutes beyond the hour"),
        ("[*read(path), start]", "[start, *read(path)]", "the newest start first"),
    ),
)  # fmt: skip
