"""The head of a report: what was trained, when, how long and on what, and the score that matters first."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from jebm.config import Config
from jebm.evaluation import Record
from jebm.report import scores
from jebm.report.found import is_number
from jebm.report.markup import Markup, tag
from jebm.report.plots import short
from jebm.runs.directory import RunDirectory
from jebm.runs.starts import duration, read

__all__ = ["head", "headline", "trained_seconds"]

GOES_ON = "training goes on, and this page renews itself"


def head(directory: RunDirectory, config: Config, lines: Sequence[Mapping[str, Any]], live: bool) -> Markup:
    """The name of the run, and facts about it."""
    starts, summary, method = read(directory.starts), config.method.SUMMARY, config.method
    height, width, channels = method.image_shape
    step = _step(directory, lines)
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    facts: dict[str, Any] = {
        "family": f"{summary.name} ({type(method).__name__})",
        "paper": summary.paper,
        "data": f"{config.data.source}, {width} × {height} px, {colours}",
        "trained": f"step {step:,} of {config.training.num_steps:,}, batches of {config.data.batch_size:,}, "
        f"seed {config.training.seed}",
    }
    times = [line["time"] for line in lines if is_number(line.get("time"))]
    begun = starts[0].time if starts else min(times, default=None)
    if begun is not None:
        facts["begun"] = _when(begun)
    if times and not live:
        facts["ended"] = _when(max(times))
    if starts:
        last = starts[-1]
        if seconds := trained_seconds([start.time for start in starts], times):
            again = f", in {len(starts)} parts" if len(starts) > 1 else ""
            facts["took"] = f"{duration(seconds)}{again}"
        facts |= {"device": last.device, "versions": last.versions, "commit": last.commit}
        facts["command"] = tag("code", last.command)
    rates = [line["images_per_second"] for line in lines if is_number(line.get("images_per_second"))]
    if rates:
        facts["speed"] = f"{short(sorted(rates)[len(rates) // 2])} images/s (median)"
    rows = [part for key, value in facts.items() if value for part in (tag("dt", key), tag("dd", value))]
    going = [tag("span", GOES_ON, class_="live")] if live else []
    return tag("div", tag("h1", directory.path.name), *going, tag("dl", *rows, class_="facts"))


def headline(
    directory: RunDirectory, config: Config, records: Sequence[Record], lines: Sequence[Mapping[str, Any]]
) -> Markup:
    """The first score of the family that was measured, beside its yardstick; before there is one, how far it is."""
    newest = max((record.protocol.get("step", 0) for record in records), default=0)
    of_step = {record.metric: record for record in records if record.protocol.get("step", 0) == newest}
    chosen = next((of_step[name] for name in config.method.SUMMARY.headlines if name in of_step), None)
    if chosen is None:
        return _progress(directory, config, lines)
    score = scores.explained(chosen.metric, config.method.SUMMARY.scores)
    better = scores.direction(chosen, config.method.SUMMARY.scores)
    mark = tag("span", f" {scores.ARROWS[better]}", class_="arrow") if better else ""
    space = chosen.protocol.get("features", {}).get("feature_space")
    parts = [
        tag("h3", scores.title(chosen.metric)),
        tag("div", short(chosen.value), mark, class_="big"),
        tag("p", score.meaning, f" {better.capitalize()} is better." if better else "", class_="soft"),
    ]
    beside = {"this model": chosen.value, **scores.yardsticks(chosen, records)}
    if len(beside) > 1:
        top = max(max(beside.values()), 1e-12)
        cells = [cell for name, value in beside.items() for cell in _bar(name, value, value / top)]
        parts.append(tag("div", *cells, class_="bars"))
    about = [f"n = {chosen.n:,}", f"step {newest:,}"] + [f"{chosen.protocol['weights']} weights"] * (
        "weights" in chosen.protocol
    )
    parts.append(tag("p", ", ".join(about + [f"features {space}"] * (space is not None)), class_="soft"))
    return tag("div", *parts, class_="card")


def trained_seconds(starts: Sequence[float], times: Sequence[float]) -> float:
    """Time of training: from each start to the last line logged before the next one; what was lost by a kill, too."""
    ends = [*starts[1:], float("inf")]
    parts = [[t for t in times if start <= t < end] for start, end in zip(starts, ends, strict=True)]
    return float(sum(max(part) - start for start, part in zip(starts, parts, strict=True) if part))


def _progress(directory: RunDirectory, config: Config, lines: Sequence[Mapping[str, Any]]) -> Markup:
    step, steps = _step(directory, lines), config.training.num_steps
    if step >= steps:
        return Markup()
    done = tag("div", tag("span", class_="bar", style=f"width: {100 * step / steps:.1f}%"), class_="meter")
    newest = [line for line in lines if "event" not in line][-1:] or [{}]
    values = {n: newest[0][n] for n in config.method.SUMMARY.progress if is_number(newest[0].get(n))}
    now = tag(
        "p", ", ".join(f"{name.replace('_', ' ')} {short(value)}" for name, value in values.items()), class_="soft"
    )
    return tag("div", tag("h3", f"Step {step:,} of {steps:,}"), done, now, class_="card")


def _bar(name: str, value: float, share: float) -> tuple[Markup, ...]:
    look = "bar" if name == "this model" else "bar other"
    bar = tag("span", class_=look, style=f"width: {100 * max(share, 0):.1f}%")
    return tag("span", name), tag("span", bar), tag("span", short(value))


def _step(directory: RunDirectory, lines: Sequence[Mapping[str, Any]]) -> int:
    """The newest that is logged or drawn: a packed model has no log."""
    drawn = [int(path.stem[5:]) for path in directory.samples.glob("step_*.png") if path.stem[5:].isdigit()]
    return max([0, *(line["step"] for line in lines), *drawn])


def _when(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""
