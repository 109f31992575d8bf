"""``report.html``: one self-contained page with curves, sample grids and scores."""

import base64
import html
import io
import pathlib

from jebm.evaluation import Record, read_all
from jebm.runs import RunDirectory
from jebm.training.records import read_metrics

__all__ = ["write"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .25rem .8rem; text-align: left; }
tr:nth-child(even) { background: #f4f4f4; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { image-rendering: pixelated; max-width: 100%; } figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
img.grid { width: 18rem; } pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; }
"""


def write(directory: RunDirectory) -> None:
    """Writes ``report.html`` of a run: what is there is shown, what is not is left out."""
    config = directory.read_config()
    parts = [
        f"<h1>{html.escape(directory.path.name)}</h1>",
        f"<p>{type(config.method).__name__} on {html.escape(config.data.source)}, seed {config.training.seed}.</p>",
        _samples(directory.samples),
        _scores(read_all(directory.evaluation)),
        _curves(directory.metrics),
        f"<h2>Configuration</h2><pre>{html.escape(directory.config.read_text())}</pre>",
    ]
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(directory.path.name)}</title>"
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    temporary = directory.report.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(directory.report)


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


def _scores(records: list[Record]) -> str:
    if not records:
        return ""
    rows = []
    for record in sorted(records, key=lambda r: (-int(r.protocol.get("step", 0)), r.metric)):
        interval = record.protocol.get("bootstrap_interval_95")
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        space = record.protocol.get("features", {}).get("name", "")
        rows.append(
            f"<tr><td>{html.escape(record.metric)}</td><td class='number'>{record.value:.5g}{spread}</td>"
            f"<td class='number'>{record.n:,}</td><td class='number'>{record.protocol.get('step', '')}</td>"
            f"<td>{html.escape(str(space))}</td></tr>"
        )
    head = "<tr><th>metric</th><th>value [95 %]</th><th>n</th><th>step</th><th>feature space</th></tr>"
    return f"<h2>Scores</h2><table>{head}{''.join(rows)}</table>"


def _curves(path: pathlib.Path) -> str:
    lines = read_metrics(path)
    names = [n for n in (lines[-1] if lines else {}) if n != "step" and "time" not in n and "per_second" not in n]
    if not names:
        return ""
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axes.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return f"<h2>Training</h2><img alt='curves' src='{_embedded(buffer.getvalue(), 'svg+xml')}'>"


def _embedded(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
