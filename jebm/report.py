"""``report.html``: one self-contained page of a run, from the files in its directory; nothing is loaded from a network.

What is there is shown, what is not is left out. Generated images, raw scores and chains come from
``evaluation/*.npz``, which `jebm evaluate` and `walk` write.
"""

import base64
import html
import pathlib
from typing import Any

import numpy as np

from jebm import pictures
from jebm.config import Config, ConfigError
from jebm.evaluation import Record, read_all
from jebm.runs import Run, RunDirectory
from jebm.training.records import read_metrics

__all__ = ["walk", "write"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .25rem .8rem; text-align: left; }
tr:nth-child(even) { background: #f4f4f4; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { image-rendering: pixelated; max-width: 100%; } figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
img.grid { width: 18rem; } img.plot { image-rendering: auto; } p.note { color: #555; max-width: 50rem; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; }
"""
NUM_NEIGHBOURS = 12  # generated images shown with their nearest training images
NUM_CHAINS = 9
CHAIN_MULTIPLE = 2  # a chain is shown for this many times training's steps


def write(directory: RunDirectory) -> None:
    """Writes ``report.html`` of a run, whole or not at all."""
    config = directory.read_config()
    records = read_all(directory.evaluation)
    parts = [
        f"<h1>{html.escape(directory.path.name)}</h1>",
        f"<p>{type(config.method).__name__} on {html.escape(config.data.source)}, seed {config.training.seed}.</p>",
        _summary(config, directory),
        _samples(directory.samples),
        _neighbours(config, directory.evaluation),
        _scores(records),
        _energies(directory.evaluation),
        _chain(directory.evaluation),
        _long_run(records),
        _curves(directory.metrics),
        _recoveries(directory.metrics),
        f"<h2>Configuration</h2><pre>{html.escape(directory.config.read_text())}</pre>",
    ]
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(directory.path.name)}</title>"
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    temporary = directory.report.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(directory.report)


def walk(run: Run) -> pathlib.Path | None:
    """Writes ``evaluation/chain-*.npz``: a few of training's chains on images, from generated images, step by step.

    Array ``x``, uint8 [frames, chains, H, W, C], the start first; None for a family without such chains.
    """
    import jax

    from jebm import images, mcmc
    from jebm.energy import bind
    from jebm.evaluation.cache import write_arrays
    from jebm.evaluation.long_run import energy_of
    from jebm.evaluation.of_run import with_weights
    from jebm.evaluation.records import file_stem

    chain = run.method.training_chain
    if chain is None:
        return None
    start_key, chain_key = jax.random.split(jax.random.key(run.config.evaluation.seed))
    start = run.method.generate(start_key, run.state, NUM_CHAINS)
    kernel = mcmc.langevin(
        bind(energy_of(run.method), run.state), chain.step_size, chain.temperature,
        max_displacement=chain.max_displacement,
    )  # fmt: skip
    num_steps = CHAIN_MULTIPLE * chain.num_steps
    every = max(1, num_steps // 40)
    _, info = mcmc.sample_chains(chain_key, kernel, start, num_steps, trace=(), positions_every=every)
    frames = np.concatenate([np.asarray(start)[None], np.moveaxis(np.asarray(info["position"]), 1, 0)])
    protocol = {"weights": with_weights(run, None)[1], "step": run.step}
    path = run.directory.evaluation / f"{file_stem('chain', protocol)}.npz"
    write_arrays(path, {"x": images.to_uint8(frames), "every": np.array(every)})
    return path


def _summary(config: Config, directory: RunDirectory) -> str:
    lines = read_metrics(directory.metrics)
    rows = {
        "method": type(config.method).__name__,
        "images": f"{config.data.source}, {config.method.image_size} px, {config.method.channels} channels",
        "batch": f"{config.data.batch_size:,}",
        "training steps": f"{lines[-1]['step'] if lines else 0:,} of {config.training.num_steps:,}",
        "evaluation": f"{config.evaluation.num_samples:,} generated images, seed {config.evaluation.seed}",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<h2>Experiment</h2><table>{cells}</table>"


def _samples(folder: pathlib.Path, most: int = 6) -> str:
    files = sorted(folder.glob("step_*.png"))
    if not files:
        return ""
    stride = max(1, len(files) // most)
    chosen = files[::-1][::stride][:most][::-1]  # evenly spread, the newest among them
    figures = [
        f"<figure><img class='grid' alt='samples' src='{_embedded(file.read_bytes())}'>"
        f"<figcaption>step {int(file.stem.partition('_')[2]):,}</figcaption></figure>"
        for file in chosen
    ]
    return "<h2>Samples</h2>" + "".join(figures)


def _neighbours(config: Config, folder: pathlib.Path) -> str:
    found = _newest(folder, "samples")
    if found is None:
        return ""
    from jebm.training.loop import load_source

    try:
        training = load_source(config).train
    except ConfigError:  # the images are not where they were when it was trained
        return ""
    generated = found[1]["x"][:NUM_NEIGHBOURS]
    index, distance = pictures.nearest(generated, training)
    rows = np.stack([generated, training[index]])
    note = (
        f"Above generated images ({html.escape(found[0])}), below the training image nearest to each in pixels; root "
        f"mean square differences {distance.min():.1f} to {distance.max():.1f} levels of 255. A copy would be at 0."
    )
    picture = _embedded(pictures.png(pictures.side_by_side(list(rows)), smallest_side=120))
    return f"<h2>Nearest training images</h2><img alt='nearest' src='{picture}'><p class='note'>{note}</p>"


def _scores(records: list[Record]) -> str:
    if not records:
        return ""
    rows = []
    for record in sorted(records, key=lambda r: (-int(r.protocol.get("step", 0)), r.metric)):
        interval, error = record.protocol.get("bootstrap_interval_95"), record.protocol.get("standard_error")
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        spread = f" ± {error:.2g}" if error is not None else spread
        where = record.protocol.get("features", {}).get("feature_space", "")
        baseline = record.protocol.get(f"{record.metric.partition('_')[0]}_of_compressed_size")
        rows.append(
            f"<tr><td>{html.escape(record.metric)}</td><td class='number'>{record.value:.5g}{spread}</td>"
            f"<td class='number'>{'' if baseline is None else f'{baseline:.3f}'}</td>"
            f"<td class='number'>{record.n:,}</td><td class='number'>{record.protocol.get('step', '')}</td>"
            f"<td>{html.escape(str(record.protocol.get('weights', '')))}</td><td>{html.escape(str(where))}</td></tr>"
        )
    head = (
        "<tr><th>metric</th><th>value [95 %] or ± error</th><th>compressed size</th><th>n</th><th>step</th>"
        "<th>weights</th><th>feature space</th></tr>"
    )
    note = "The third column: what the images' compressed size alone achieves. Each record says how it was measured."
    return f"<h2>Scores</h2><table>{head}{''.join(rows)}</table><p class='note'>{note}</p>"


def _energies(folder: pathlib.Path) -> str:
    found = _newest(folder, "ood_scores")
    if found is None:
        return ""
    values = {
        {"in": "test images"}.get(name.partition("/")[2], name.partition("/")[2].replace("_", " ")): numbers
        for name, numbers in found[1].items()
        if name.startswith("energy/") and "/in-for-" not in name
    }
    picture = _embedded(pictures.histograms(values, "energy"), "svg+xml")
    note = f"Lower is more like the data ({html.escape(found[0])}). Beyond the middle 98 % values are cut."
    return f"<h2>Energies</h2><img class='plot' alt='energies' src='{picture}'><p class='note'>{note}</p>"


def _chain(folder: pathlib.Path) -> str:
    found = _newest(folder, "chain")
    if found is None:
        return ""
    frames, every = found[1]["x"], int(found[1]["every"])
    film = pictures.animation([pictures.side_by_side(list(frame.reshape(3, -1, *frame.shape[1:]))) for frame in frames])
    apart = np.abs(frames[-1].astype(float) - frames[0]).mean()
    note = (
        f"Langevin chains on the energy with training's settings, from generated images; a frame every {every} steps, "
        f"{every * (len(frames) - 1):,} in all ({html.escape(found[0])}). They move by {apart:.1f} of 255 levels in "
        "the mean."
    )
    source = _embedded(film, "gif")
    return f"<h2>A chain</h2><img class='grid' alt='chain' src='{source}'><p class='note'>{note}</p>"


def _long_run(records: list[Record]) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name, _, multiple = record.metric.removeprefix("long_run_").rpartition("_")
        if record.metric.startswith("long_run_") and multiple[:-1].isdigit():
            points.setdefault(name, []).append((int(multiple[:-1]), record.value))
    if not points:
        return ""
    picture = _embedded(pictures.curves({k: sorted(v) for k, v in points.items()}, logarithmic=True), "svg+xml")
    return f"<h2>Long run</h2><img class='plot' alt='long run' src='{picture}'><p class='note'>Against multiples of \
training's chain; the drift is 0 for the image that a chain started from, 1 for an unrelated one.</p>"


def _curves(path: pathlib.Path) -> str:
    lines = [line for line in read_metrics(path) if "event" not in line]
    names = [n for n in (lines[-1] if lines else {}) if n != "step" and "time" not in n and "per_second" not in n]
    if not names:
        return ""
    points = {n: [(line["step"], line[n]) for line in lines if line.get(n) is not None] for n in names}
    picture = _embedded(pictures.curves(points), "svg+xml")
    return f"<h2>Training</h2><img class='plot' alt='curves' src='{picture}'>"


def _recoveries(path: pathlib.Path) -> str:
    events = [line for line in read_metrics(path) if line.get("event") == "recovery"]
    if not events:
        return ""
    rows = [
        f"<tr><td class='number'>{e['attempt']}</td><td class='number'>{e['detected']:,}</td>"
        f"<td class='number'>{e['restored']:,}</td><td>{html.escape(e['reason'])}</td></tr>"
        for e in events
    ]
    head = "<tr><th>attempt</th><th>seen at step</th><th>gone on from step</th><th>reason</th></tr>"
    return f"<h2>Recoveries</h2><table>{head}{''.join(rows)}</table>"


def _newest(folder: pathlib.Path, kind: str) -> tuple[str, dict[str, Any]] | None:
    """The arrays of the latest step's ``<kind>-<weights>-step<step>*.npz``, and in words which those are."""
    files = sorted(folder.glob(f"{kind}-*.npz"), key=lambda path: (path.stem.split("-")[2], path.stat().st_mtime))
    if not files:
        return None
    _, weights, step = files[-1].stem.split("-")[:3]
    with np.load(files[-1]) as file:
        return f"step {int(step.removeprefix('step')):,}, {weights} weights", dict(file)


def _embedded(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
