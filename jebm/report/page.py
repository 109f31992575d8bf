"""``report.html``: one self-contained page of a run, from the files in its directory; nothing is loaded from a network.

What is there is shown, what is not is left out; a file that is there and damaged is named (`DamagedFile`). Generated
images, raw scores and chains come from ``evaluation/*.npz``, which `jebm evaluate` and `walk` write.
"""

import base64
import html
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jebm import files, images, paths
from jebm.config import Config
from jebm.errors import JebmError
from jebm.evaluation import Record, read_record
from jebm.report import plots as pictures
from jebm.report.film import MOVES, movement
from jebm.runs.directory import RunDirectory
from jebm.runs.metrics_log import read_metrics

__all__ = ["DamagedFile", "write"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .25rem .8rem; text-align: left; }
tr:nth-child(even) { background: #f4f4f4; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { image-rendering: pixelated; max-width: 100%; } figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
img.grid { width: 18rem; } img.plot { image-rendering: auto; } p.note { color: #555; max-width: 50rem; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; }
"""
NUM_NEIGHBOURS = 12  # generated images shown with their nearest training images


class DamagedFile(JebmError):
    """A file of the run directory that is not as it was written; the message names it."""


class _Html(str):
    """Markup, put into a page as it is; any other text is escaped by `_tag`."""


def _tag(name: str, *content: Any, **attributes: Any) -> _Html:
    """An element. The one place where text becomes markup: all but `_Html` is escaped."""
    inner = "".join(part if isinstance(part, _Html) else html.escape(str(part)) for part in content)
    given = "".join(f" {key.rstrip('_')}='{html.escape(str(value))}'" for key, value in attributes.items())
    return _Html(f"<{name}{given}>" if name in ("img", "meta") else f"<{name}{given}>{inner}</{name}>")


def _section(title: str, *content: _Html) -> _Html:
    return _Html(_tag("h2", title) + "".join(content))


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str] = ()) -> _Html:
    """A table; cells that are a `_Number` are flush right."""
    lines = [_tag("tr", *(_tag("th", cell) for cell in head))] if head else []
    for row in rows:
        cells = [_tag("td", cell, **({"class_": "number"} if isinstance(cell, _Number) else {})) for cell in row]
        lines.append(_tag("tr", *cells))
    return _tag("table", *lines)


class _Number(str):
    """The text of a number."""


def _note(text: str) -> _Html:
    return _tag("p", text, class_="note")


def write(directory: RunDirectory) -> None:
    """Writes ``report.html`` of a run, whole or not at all.

    Raises:
        ConfigError: no run directory.
        DamagedFile: a file of it that is not as it was written.
    """
    config = directory.read_config()
    records = [_record(path) for path in sorted(directory.evaluation.glob("*.json"))]
    lines = _lines(directory.metrics)
    name, method = directory.path.name, type(config.method).__name__
    page = _tag(
        "html",
        _tag("head", _tag("meta", charset="utf-8"), _tag("title", name), _tag("style", _Html(STYLE))),
        _tag(
            "body",
            _tag("h1", name),
            _tag("p", f"{method} on {config.data.source}, seed {config.training.seed}."),
            _summary(config, lines),
            _samples(directory.samples),
            _neighbours(config, directory),
            _scores(records),
            _energies(directory.evaluation),
            _chain(directory.evaluation),
            _long_run(records),
            _curves(lines),
            _recoveries(lines, directory.metrics),
            _section("Configuration", _tag("pre", directory.config.read_text())),
        ),
        lang="en",
    )
    with files.whole(directory.report) as temporary:
        temporary.write_text(f"<!doctype html>{page}\n", encoding="utf-8", errors="xmlcharrefreplace")


def _summary(config: Config, lines: list[dict[str, Any]]) -> _Html:
    rows = {
        "method": type(config.method).__name__,
        "images": config.data.source,
        "batch": f"{config.data.batch_size:,}",
        "training steps": f"{lines[-1]['step'] if lines else 0:,} of {config.training.num_steps:,}",
        "evaluation": f"{config.evaluation.num_samples:,} generated images, seed {config.evaluation.seed}",
    }
    return _section("Experiment", _table(rows.items()))


def _samples(folder: paths.Path, most: int = 6) -> _Html:
    files = [(path, match) for path in sorted(folder.glob("step_*.png")) if (match := re.search(r"_(\d+)$", path.stem))]
    if not files:
        return _Html()
    stride = max(1, len(files) // most)
    chosen = files[::-1][::stride][:most][::-1]  # evenly spread, the newest among them
    figures = [
        _tag(
            "figure",
            _tag("img", class_="grid", alt="samples", src=_embedded(file.read_bytes())),
            _tag("figcaption", f"step {int(match[1]):,}"),
        )
        for file, match in chosen
    ]
    return _section("Samples", *figures)


def _neighbours(config: Config, directory: RunDirectory) -> _Html:
    found = _newest(directory.evaluation, "samples")
    if found is None:
        return _Html()
    path, where, arrays = found
    generated = _pixels(path, arrays, 4)[:NUM_NEIGHBOURS]
    from jebm.runs.run import load_source, method_of

    try:
        training = load_source(config, method_of(directory).image_shape).train
    except JebmError:  # the images, or a frozen generator, are not where they were when it was trained
        return _Html()
    if generated.shape[1:] != training.shape[1:]:
        raise DamagedFile(f"{path}: images of {generated.shape[1:]}, those of training are {training.shape[1:]}")
    index, distance = pictures.nearest(generated, training)
    rows = np.stack([generated, training[index]])
    note = (
        f"Above generated images ({where}), below the training image nearest to each in pixels; root mean square "
        f"differences {distance.min():.1f} to {distance.max():.1f} levels of 255. A copy would be at 0."
    )
    picture = _embedded(images.png(pictures.side_by_side(list(rows)), smallest_side=120))
    return _section("Nearest training images", _tag("img", alt="nearest", src=picture), _note(note))


def _scores(records: list[Record]) -> _Html:
    if not records:
        return _Html()
    rows = []
    for record in sorted(records, key=lambda r: (-r.protocol.get("step", 0), r.metric)):
        interval, error = record.protocol.get("bootstrap_interval_95"), record.protocol.get("standard_error")
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        spread = f" ± {error:.2g}" if error is not None else spread
        baseline = record.protocol.get(_baseline(record))
        rows.append(
            (
                record.metric, _Number(f"{record.value:.5g}{spread}"),
                _Number("" if baseline is None else f"{baseline:.3f}"), _Number(f"{record.n:,}"),
                _Number(record.protocol.get("step", "")), record.protocol.get("weights", ""),
                record.protocol.get("features", {}).get("feature_space", ""),
            )
        )  # fmt: skip
    head = (
        "metric", "value [95 %] or ± error", "compressed size", "n", "step", "weights", "feature space",
    )  # fmt: skip
    note = "The third column: what the images' compressed size alone achieves. Each record says how it was measured."
    return _section("Scores", _table(rows, head), _note(note))


def _baseline(record: Record) -> str:
    return f"{record.metric.partition('_')[0]}_of_compressed_size"


def _energies(folder: paths.Path) -> _Html:
    found = _newest(folder, "ood_scores")
    if found is None:
        return _Html()
    path, where, arrays = found
    values = {
        {"in": "test images"}.get(name.partition("/")[2], name.partition("/")[2].replace("_", " ")): numbers
        for name, numbers in arrays.items()
        if name.startswith("energy/") and "/in-for-" not in name
    }
    for name, numbers in values.items():
        if numbers.ndim != 1 or not numbers.size or not _all_finite(numbers):
            raise DamagedFile(f"{path}: 'energy/{name}' is {numbers.dtype} {numbers.shape}, not a list of numbers")
    if not values:
        raise DamagedFile(f"{path}: holds no array 'energy/...'")
    picture = _embedded(pictures.histograms(values, "energy"), "svg+xml")
    note = f"Lower is more like the data ({where}). Beyond the middle 98 % values are cut."
    return _section("Energies", _tag("img", class_="plot", alt="energies", src=picture), _note(note))


def _chain(folder: paths.Path) -> _Html:
    found = _newest(folder, "chain")
    if found is None:
        return _Html()
    path, where, arrays = found
    frames, every = _pixels(path, arrays, 5), arrays.get("every", np.array("missing"))
    if every.shape != () or not np.issubdtype(every.dtype, np.integer) or every < 1:
        raise DamagedFile(f"{path}: 'every' is {every.dtype} {every.shape}, not a number of steps")
    apart = movement(frames)
    if apart < MOVES:  # written by an earlier version
        return _Html()
    rows = 3 if frames.shape[1] % 3 == 0 else 1
    film = pictures.animation(
        [pictures.side_by_side(list(frame.reshape(rows, -1, *frame.shape[1:]))) for frame in frames]
    )
    note = (
        f"Langevin chains on the energy with training's settings, from generated images; a frame every {every:,} "
        f"steps, {every * (len(frames) - 1):,} in all ({where}), as many as it takes to see them move: by {apart:.1f} "
        "of 255 levels in the mean."
    )
    return _section("A chain", _tag("img", class_="grid", alt="chain", src=_embedded(film, "gif")), _note(note))


def _long_run(records: list[Record]) -> _Html:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name, _, multiple = record.metric.removeprefix("long_run_").rpartition("_")
        if record.metric.startswith("long_run_") and re.fullmatch(r"\d+x", multiple):
            points.setdefault(name, []).append((int(multiple[:-1]), record.value))
    if not points:
        return _Html()
    picture = _embedded(pictures.curves({k: sorted(v) for k, v in points.items()}, logarithmic=True), "svg+xml")
    note = (
        "Against multiples of training's chain; the drift is 0 for the image that a chain started from, 1 for an "
        "unrelated one."
    )
    return _section("Long run", _tag("img", class_="plot", alt="long run", src=picture), _note(note))


def _curves(lines: list[dict[str, Any]]) -> _Html:
    lines = [line for line in lines if "event" not in line]
    names = [n for n in (lines[-1] if lines else {}) if n != "step" and "time" not in n and "per_second" not in n]
    points = {n: [(line["step"], line[n]) for line in lines if _is_number(line.get(n))] for n in names}
    points = {name: curve for name, curve in points.items() if curve}
    if not points:
        return _Html()
    picture = _embedded(pictures.curves(points), "svg+xml")
    return _section("Training", _tag("img", class_="plot", alt="curves", src=picture))


def _recoveries(lines: list[dict[str, Any]], path: paths.Path) -> _Html:
    events = [line for line in lines if line.get("event") == "recovery"]
    if not events:
        return _Html()
    names = ("attempt", "detected", "restored", "reason")
    for event in events:
        if missing := [name for name in names if name not in event]:
            raise DamagedFile(f"{path}: the recovery of step {event['step']} has no {', '.join(missing)}")
    rows = [[_Number(event[name]) for name in names[:3]] + [event["reason"]] for event in events]
    return _section("Recoveries", _table(rows, ("attempt", "seen at step", "resumed from step", "reason")))


def _lines(path: paths.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are of a step."""
    try:
        lines = read_metrics(path)
    except (ValueError, RecursionError) as error:  # not UTF-8, numbers or brackets that Python does not read
        raise DamagedFile(f"{path} cannot be read: {error}") from None
    return [line for line in lines if isinstance(line, dict) and type(line.get("step")) is int]


def _record(path: paths.Path) -> Record:
    """A record whose protocol has the types that the page shows."""
    try:
        record = read_record(path)
    except ValueError as error:
        raise DamagedFile(str(error)) from None
    interval, protocol = record.protocol.get("bootstrap_interval_95"), record.protocol
    numbers = {name: protocol.get(name) for name in ("standard_error", _baseline(record))}
    wrong = [name for name, value in numbers.items() if value is not None and not _is_number(value)]
    wrong += ["step"] * (type(protocol.get("step", 0)) is not int)
    wrong += ["features"] * (not isinstance(protocol.get("features", {}), dict))
    good = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    wrong += ["bootstrap_interval_95"] * (interval is not None and not good)
    if wrong:
        raise DamagedFile(f"{path}: {', '.join(wrong)} of its protocol is not as jebm writes it")
    return record


def _is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _all_finite(numbers: np.ndarray) -> bool:
    return bool(np.issubdtype(numbers.dtype, np.number) and np.isfinite(numbers).all())


def _pixels(path: paths.Path, arrays: dict[str, np.ndarray], axes: int) -> np.ndarray:
    """``x``, uint8 images with so many axes."""
    x = arrays.get("x", np.zeros(0))
    if x.dtype != np.uint8 or x.ndim != axes or not x.size or x.shape[-1] not in (1, 3):
        raise DamagedFile(f"{path}: 'x' is {x.dtype} {x.shape}, not uint8 images of {axes} axes")
    return x


def _newest(folder: paths.Path, kind: str) -> tuple[paths.Path, str, dict[str, Any]] | None:
    """The latest step's ``<kind>-<weights>-step<step>*.npz``, in words which that is, and its arrays."""
    named = re.compile(rf"{kind}-(raw|ema)-step(\d+)(-.*)?\.npz")
    files = [(path, match) for path in folder.glob(f"{kind}-*.npz") if (match := named.fullmatch(path.name))]
    if not files:
        return None
    path, match = max(files, key=lambda found: (int(found[1][2]), _written(found[0])))
    with path.open("rb") as stream:  # numpy leaves damaged archives open
        try:
            file = np.load(stream, allow_pickle=False)
            arrays = {} if isinstance(file, np.ndarray) else dict(file)
        except Exception as error:  # damaged archives fail in many ways: lengths, versions, headers, codecs
            raise DamagedFile(f"{path} cannot be read ({type(error).__name__}): remove it, or evaluate again") from None
    return path, f"step {int(match[2]):,}, {match[1]} weights", arrays


def _written(path: paths.Path) -> float:
    """When, in seconds."""
    about = path.stat()
    return float(about.mtime if paths.is_remote(path) else about.st_mtime)  # type: ignore[union-attr]


def _embedded(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
