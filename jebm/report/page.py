"""``report.html``: one self-contained page of a run, from the files in its directory; nothing is loaded from a network.

What is there is shown, what is not is left out; a file that is there and damaged is named (`DamagedFile`). Generated
images, raw scores and chains come from ``evaluation/*.npz``, which `jebm evaluate` and `jebm.report.looks` write.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jebm import data, files, images, paths
from jebm.config import Config
from jebm.data import Source
from jebm.errors import JebmError
from jebm.evaluation import Record
from jebm.evaluation.long_run import LIMITS, nature
from jebm.evaluation.yardsticks import is_yardstick, verdict
from jebm.methods.base import Better
from jebm.report import plots as pictures
from jebm.report import scores
from jebm.report.film import MOVES, movement
from jebm.report.found import DamagedFile, Found, all_finite, is_number, lines_of, newest, pixels, record_of
from jebm.report.head import GOES_ON, head, headline
from jebm.report.markup import Markup, note, number, section, table, tag
from jebm.report.style import STYLE
from jebm.runs.directory import RunDirectory

__all__ = ["DamagedFile", "still", "write"]

REFRESH = 20  # seconds after which a browser reads the page of a training that goes on again
NUM_NEIGHBOURS = 8  # generated images shown with their nearest training images
MOST_GRIDS = 6  # earlier sample grids
NUM_CURVES = 6  # unfolded

WORDS = {
    "density": "a density: distances stay within "
    + " and ".join(f"{most} times at {m:,}" for m, most in LIMITS.items()),
    "short-run sampler": "a short-run sampler, not a density: distances from held-out images grow",
    "unknown": "neither known to be a density nor a short-run sampler: distances at "
    + " and ".join(f"{m:,}" for m in LIMITS)
    + " times training's steps say which",
}


def write(directory: RunDirectory, source: Source | None = None, *, live: bool = False) -> None:
    """Writes ``report.html`` of a run, whole or not at all.

    Args:
        directory: the run.
        source: its images; None: they are loaded, and if they are not where they were, none are shown.
        live: for a training that goes on: what takes long is left out (nearest neighbours), and browsers read the page
            again from time to time.

    Raises:
        ConfigError: no run directory.
        DamagedFile: a file of it that is not as it was written.
    """
    config = directory.read_config()
    source = _source(config, directory) if source is None and not live else source
    records = [record_of(path) for path in sorted(directory.evaluation.glob("*.json"))]
    lines = lines_of(directory.metrics)
    looks = newest(directory.evaluation, "looks")
    metas = [tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1")]
    if live:
        metas.append(tag("meta", http_equiv="refresh", content=REFRESH))
    page = tag(
        "html",
        tag("head", *metas, tag("title", directory.path.name), tag("style", Markup(STYLE))),
        tag(
            "body",
            tag("header", head(directory, config, lines, live), headline(directory, config, records, lines)),
            _samples(config, directory.samples, source),
            _pairs(looks, records),
            _interpolation(looks),
            Markup() if live else _neighbours(directory, source),
            _chain(directory.evaluation),
            _energies(directory.evaluation),
            _scores(config, records),
            _long_run(records),
            _curves(config, lines),
            _recoveries(lines, directory.metrics),
            section(
                "Configuration", tag("details", tag("summary", "config.json"), tag("pre", directory.config.read_text()))
            ),
        ),
        lang="en",
    )
    with files.whole(directory.report) as temporary:
        temporary.write_text(f"<!doctype html>{page}\n", encoding="utf-8", errors="xmlcharrefreplace")


def still(directory: RunDirectory) -> None:
    """Keeps browsers from reading a report again and again: it is as ``live`` left it otherwise.

    Raises:
        OSError: a page that cannot be read or written.
    """
    text = directory.report.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv='refresh'[^>]*>", "", text, count=1)
    with files.whole(directory.report) as temporary:
        temporary.write_text(text.replace(f">{GOES_ON}<", ">training was interrupted<", 1), encoding="utf-8")


def _source(config: Config, directory: RunDirectory) -> Source | None:
    from jebm.runs.run import load_source, method_of

    try:
        return load_source(config, method_of(directory).image_shape)
    except JebmError:  # the images, or a frozen generator, are not where they were when it was trained
        return None


# --- images -----------------------------------------------------------------------------------------------------------


def _samples(config: Config, folder: paths.Path, source: Source | None) -> Markup:
    found = [
        (path, int(match[1]))
        for path in sorted(folder.glob("step_*.png"))
        if (match := re.search(r"_(\d+)$", path.stem))
    ]
    if not found:
        return Markup()
    *earlier, (newest, step) = found
    figures = [_figure(newest.read_bytes(), "samples", f"Generated at step {step:,}")]
    if source is not None:
        chosen = np.sort(data.permutation(0, 0, len(source.test))[: config.training.num_samples])
        real = images.png(images.grid(source.test[chosen]), smallest_side=512)
        figures.append(_figure(real, "data", f"Test images of {source.name}"))
    if len(earlier) > MOST_GRIDS:
        earlier = [earlier[i] for i in np.linspace(0, len(earlier) - 1, MOST_GRIDS).round().astype(int)]
    before = [_figure(path.read_bytes(), f"step {at}", f"step {at:,}", most=320) for path, at in earlier]
    strip = [tag("h3", "The same latents earlier"), tag("div", *before, class_="strip")] if before else []
    return section("Samples", tag("div", *figures, class_="pair"), *strip)


def _pairs(looks: Found | None, records: Sequence[Record]) -> Markup:
    if looks is None or "original" not in looks[2]:
        return Markup()
    path, where, arrays = looks
    original, reconstruction = (pixels(path, arrays, 4, name) for name in ("original", "reconstruction"))
    if original.shape != reconstruction.shape:
        raise DamagedFile(f"{path}: {len(original)} originals and {len(reconstruction)} reconstructions")
    picture = images.png(pictures.side_by_side([original, reconstruction]), smallest_side=120)
    text = f"Above test images, below what encoder and decoder make of them ({where})."
    return section("Reconstructions", _figure(picture, "reconstructions", text, "wide"))


def _interpolation(looks: Found | None) -> Markup:
    if looks is None or "interpolation" not in looks[2]:
        return Markup()
    path, where, arrays = looks
    picture = images.png(pictures.side_by_side(list(pixels(path, arrays, 5, "interpolation"))), smallest_side=240)
    text = f"From one latent to another along a great circle, a row for each pair, through the generator ({where})."
    return section("Between latents", _figure(picture, "interpolation", text, "wide"))


def _neighbours(directory: RunDirectory, source: Source | None) -> Markup:
    found = newest(directory.evaluation, "samples")
    if found is None or source is None:
        return Markup()
    path, where, arrays = found
    generated, training = pixels(path, arrays, 4)[:NUM_NEIGHBOURS], source.train
    if generated.shape[1:3] == (1, 1):  # points: their grid says it
        return Markup()
    if generated.shape[1:] != training.shape[1:]:
        raise DamagedFile(f"{path}: images of {generated.shape[1:]}, those of training are {training.shape[1:]}")
    index, distance = pictures.nearest(generated, training)
    picture = images.png(pictures.side_by_side([generated, training[index]]), smallest_side=120)
    text = (
        f"Above generated images ({where}), below the training image nearest to each in pixels; root mean square "
        f"differences {distance.min():.1f} to {distance.max():.1f} levels of 255. A copy would be at 0."
    )
    return section("Nearest training images", _figure(picture, "nearest", text, "wide"))


def _chain(folder: paths.Path) -> Markup:
    found = newest(folder, "chain")
    if found is None:
        return Markup()
    path, where, arrays = found
    if (reason := arrays.get("reason")) is not None:
        if reason.dtype.kind != "U" or reason.shape != ():
            raise DamagedFile(f"{path}: 'reason' is {reason.dtype} {reason.shape}, not a text")
        return section("A chain", note(f"No film ({where}): {reason}."))
    frames, every = pixels(path, arrays, 5), arrays.get("every", np.array("missing"))
    if every.shape != () or not np.issubdtype(every.dtype, np.integer) or every < 1:
        raise DamagedFile(f"{path}: 'every' is {every.dtype} {every.shape}, not a number of steps")
    apart = movement(frames)
    if apart < MOVES:
        text = f"No film ({where}): the kept one moves by {apart:.1f} of 255 levels, which no eye sees."
        return section("A chain", note(text))
    rows = 3 if frames.shape[1] % 3 == 0 else 1
    film = pictures.animation(
        [pictures.side_by_side(list(frame.reshape(rows, -1, *frame.shape[1:]))) for frame in frames]
    )
    start = arrays.get("start", np.array("generated images"))
    pace = "every step" if every == 1 else f"every {every:,} steps"
    text = (
        f"Langevin chains on the energy with training's settings, from {start}; a frame {pace}, "
        f"{every * (len(frames) - 1):,} in all ({where}). Pixels move by {apart:.0f} of 255 levels in the mean."
    )
    parts = [_figure(film, "chain", text, kind="gif")]
    energy = arrays.get("energy")
    if energy is not None:
        if energy.shape != frames.shape[:2] or not all_finite(energy):
            raise DamagedFile(
                f"{path}: 'energy' is {energy.dtype} {energy.shape}, not numbers for {frames.shape[:2]} images"
            )
        steps, text = every * np.arange(len(frames)), "Their mean energy E along the steps: the density is exp(−E)."
        lines = [list(zip(steps, energy.mean(1), strict=True))]
        if (clean := arrays.get("clean_energy")) is not None:
            if not clean.size or not all_finite(clean):
                raise DamagedFile(f"{path}: 'clean_energy' is {clean.dtype} {clean.shape}, not numbers")
            lines.append([(0, clean.mean()), (steps[-1], clean.mean())])
            text += " The level line: that of the images without the noise."
        parts.append(tag("figure", Markup(pictures.curve(lines)), tag("figcaption", text)))
    return section("A chain", tag("div", *parts, class_="film"))


def _energies(folder: paths.Path) -> Markup:
    found = newest(folder, "ood_scores")
    if found is None:
        return Markup()
    path, where, arrays = found
    sets = {n.removeprefix("energy/"): v for n, v in arrays.items() if n.startswith("energy/") and "/in-for-" not in n}
    names = {"in": "test images", "samples": "generated images"}  # these first
    order = [*(name for name in names if name in sets), *(name for name in sets if name not in names)]
    values = {names.get(name, name.replace("_", " ")): sets[name] for name in order}
    for name, numbers in values.items():
        if numbers.ndim != 1 or not numbers.size or not all_finite(numbers):
            raise DamagedFile(f"{path}: 'energy/{name}' is {numbers.dtype} {numbers.shape}, not a list of numbers")
    if not values:
        raise DamagedFile(f"{path}: holds no array 'energy/...'")
    text = (
        "The energy E of whole images, in nats: the model's density is exp(−E) up to its normaliser, so lower is "
        f"likelier ({where}). Heights are square roots of shares; beyond the middle 98 % values are cut."
    )
    return section("Energies", tag("div", Markup(pictures.histograms(values, "E, nats")), class_="plot"), note(text))


# --- scores -----------------------------------------------------------------------------------------------------------


def _scores(config: Config, records: Sequence[Record]) -> Markup:
    """Those of the newest step unfolded, in groups; all others in a table."""
    if not records:
        return Markup()
    last = max(record.protocol.get("step", 0) for record in records)
    chosen = [record for record in records if record.protocol.get("step", 0) == last]
    of_outliers = [r for r in chosen if r.metric.partition("_")[0] in scores.DETECTORS]
    shown = [
        r
        for r in chosen
        if not (is_yardstick(r.metric) or re.search(r"_real$|^long_run_", r.metric) or r in of_outliers)
    ]
    cards = []
    for group, members in scores.grouped(shown).items():
        rows = [_score(record, chosen, config) for record in members]
        cards.append(tag("div", tag("h3", group), *rows, class_="card"))
    if of_outliers:
        cards.append(_outliers(of_outliers))
    older = [record for record in records if record not in chosen]
    folded = [tag("details", tag("summary", f"{len(older)} scores of earlier steps"), _plain(older))] if older else []
    text = (
        f"Of step {last:,}. ↓ lower is better, ↑ higher is better. A record in evaluation/ says how each was measured."
    )
    said = [tag("p", tag("b", line))] if (line := verdict(chosen)) else []
    return section("Scores", note(text), *said, tag("div", *cards, class_="cards"), *folded)


def _score(record: Record, records: Sequence[Record], config: Config) -> Markup:
    score = scores.explained(record.metric, config.method.SUMMARY.scores)
    error = record.protocol.get("standard_error")
    value = f"{pictures.short(record.value)}{'' if error is None else f' ± {pictures.short(error)}'}"
    beside = [f"n = {record.n:,}"]
    if len({other.protocol.get("weights") for other in records}) > 1:
        beside.append(f"{record.protocol.get('weights')} weights")
    beside = [
        f"{words}: {pictures.short(found)}" for words, found in scores.yardsticks(record, records).items()
    ] + beside
    arrow = _arrow(scores.direction(record, config.method.SUMMARY.scores))
    left = tag("div", tag("b", scores.title(record.metric)), arrow, tag("div", score.meaning, class_="soft"))
    right = tag("div", tag("b", value), *(tag("div", text, class_="soft") for text in beside), class_="value")
    return tag("div", left, right, class_="score")


def _arrow(better: Better) -> Markup:
    mark = scores.ARROWS[better]
    return tag("span", f" {mark}", class_="arrow") if mark else Markup()


def _outliers(records: Sequence[Record]) -> Markup:
    """A row for each set of outliers and weights; under the AUROC that of the null models."""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        measure, _, name = record.metric.partition("_")
        rows.setdefault((name, str(record.protocol.get("weights", ""))), {})[measure] = record
    several = len({weights for _, weights in rows}) > 1
    body = []
    for (name, weights), of_set in rows.items():
        cells: list[Any] = [f"{name.replace('_', ' ')}{f', {weights}' if several else ''}"]
        for measure in scores.DETECTORS:
            cells.append(number("td", *(_detector(of_set[measure]) if measure in of_set else [])))
        body.append(cells)
    heads = [
        "outliers",
        *(number("th", name.upper(), _arrow(score.better)) for name, score in scores.DETECTORS.items()),
    ]
    text = (
        "How well the energy tells test images from outliers; below each AUROC its 95 % interval, and what file size, "
        "or brightness and contrast, achieve without a model. Chance is an AUROC of 0.5."
    )
    listed = tag("div", table(body, heads), class_="scroll")
    return tag("div", tag("h3", "Telling outliers"), tag("p", text, class_="soft"), listed, class_="card")


def _detector(record: Record) -> list[Markup]:
    """A value; of an AUROC also its interval, and what null models achieve."""
    texts = []
    if record.metric.startswith("auroc_"):
        if interval := record.protocol.get("bootstrap_interval_95"):
            texts.append(f"{interval[0]:.3f}–{interval[1]:.3f}")
        texts += [f"{name} {value:.2f}" for name, value in scores.nulls(record).items()]
    return [tag("div", f"{record.value:.3f}"), *(tag("div", text, class_="soft") for text in texts)]


def _plain(records: Sequence[Record]) -> Markup:
    rows = [
        (r.metric, tag("td", pictures.short(r.value), class_="number"), tag("td", f"{r.n:,}", class_="number"),
         tag("td", r.protocol.get("step", ""), class_="number"), r.protocol.get("weights", ""))
        for r in sorted(records, key=lambda r: (-r.protocol.get("step", 0), r.metric))
    ]  # fmt: skip
    heads = ["record", *(tag("th", name, class_="number") for name in ("value", "n", "step")), "weights"]
    return tag("div", table(rows, heads), class_="scroll")


def _long_run(records: Sequence[Record]) -> Markup:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name, _, multiple = record.metric.removeprefix("long_run_").rpartition("_")
        if record.metric.startswith("long_run_") and re.fullmatch(r"\d+x", multiple):
            points.setdefault(name, []).append((int(multiple[:-1]), record.value))
    if not points:
        return Markup()
    plots = [
        _plot(name, [sorted(values)], "", logarithmic=True, label="times training's steps")
        for name, values in points.items()
    ]
    text = (
        "Against multiples of training's chain; the drift is 0 for the image that a chain started from, 1 for an "
        "unrelated one."
    )
    of_last = max(record.protocol.get("step", 0) for record in records)
    word = nature([record for record in records if record.protocol.get("step", 0) == of_last])
    text += f" By them this run is {WORDS[word]}."
    return section("Long run", tag("div", *plots, class_="row"), note(text))


# --- training ---------------------------------------------------------------------------------------------------------


def _curves(config: Config, lines: Sequence[Mapping[str, Any]]) -> Markup:
    lines = [line for line in lines if "event" not in line]
    names = [n for n in (lines[-1] if lines else {}) if n not in ("step", "time")]
    points = {n: [(line["step"], line[n]) for line in lines if is_number(line.get(n))] for n in names}
    points = {name: curve for name, curve in points.items() if curve}
    if not points:
        return Markup()
    told = config.method.SUMMARY.curves
    first = [name for name in told if name in points][:NUM_CURVES] or list(points)[:NUM_CURVES]
    plots = {name: _plot(name, [points[name]], told.get(name, ""), smooth=True) for name in points}
    rest = [plot for name, plot in plots.items() if name not in first]
    folded = tag("details", tag("summary", f"{len(rest)} more curves"), tag("div", *rest, class_="row"))
    shown = tag("div", *(plots[name] for name in first), class_="row")
    return section(
        "Training", note("Against the step; strong lines are running means."), shown, *([folded] if rest else [])
    )


def _plot(name: str, lines: Sequence[Sequence[tuple[float, float]]], meaning: str, **style: Any) -> Markup:
    caption = [tag("figcaption", meaning)] if meaning else []
    return tag("figure", tag("h3", name.replace("_", " ")), Markup(pictures.curve(lines, **style)), *caption)


def _recoveries(lines: Sequence[Mapping[str, Any]], path: paths.Path) -> Markup:
    events = [line for line in lines if line.get("event") == "recovery"]
    if not events:
        return Markup()
    names = ("attempt", "detected", "restored", "reason")
    for event in events:
        if missing := [name for name in names if name not in event]:
            raise DamagedFile(f"{path}: the recovery of step {event['step']} has no {', '.join(missing)}")
    rows = [[*(number("td", event[name]) for name in names[:3]), event["reason"]] for event in events]
    heads = [*(number("th", name) for name in ("attempt", "seen at step", "resumed from step")), "reason"]
    return section("Recoveries", tag("div", table(rows, heads), class_="scroll"))


def _figure(content: bytes, name: str, caption: str, class_: str = "", kind: str = "png", most: int = 1400) -> Markup:
    """A picture, and a line about it; a PNG has ``most`` pixels on a side."""
    if kind == "png":
        content = pictures.fitted(content, most)
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    attributes = {"class_": class_} if class_ else {}
    return tag("figure", tag("img", alt=name, src=address), tag("figcaption", caption), **attributes)
