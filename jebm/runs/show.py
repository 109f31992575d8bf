"""A `jebm.runs.Run` as a notebook shows it: one line, or a grid of images beside its headline scores."""

import base64
import html
import json
from typing import Any

import jax

from jebm import images, methods
from jebm.methods.shared import has_ema, parameter_counts

__all__ = ["line", "page"]

HEADLINES = ("fid", "frechet_distance", "reconstruction_error", "auroc_constant", "auroc_noise")
NUM_IMAGES = 16


def line(run: Any) -> str:
    """``Run('runs/digits', ec_vae, step 1,000, 0.2 M parameters)``."""
    count = sum(parameter_counts(run.method.networks(run.state)).values())
    size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
    family = methods.family_of(run.config.method)
    return f"Run({run.meta.get('name') or str(run.directory.path)!r}, {family}, step {run.step:,}, {size} parameters)"


def page(run: Any) -> str:
    """HTML: the line, a grid of images, and the headline scores of this step that `jebm evaluate` has written."""
    cells = [f"<img alt='samples' style='image-rendering: pixelated; width: 16rem' src='{_grid(run)}'>"]
    if scores := headlines(run):
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in scores.items())
        cells.append(f"<table><tr><th>score</th><th></th></tr>{rows}</table>")
    inside = "".join(f"<td style='vertical-align: top'>{cell}</td>" for cell in cells)
    return f"<p><code>{html.escape(line(run))}</code></p><table><tr>{inside}</tr></table>"


def headlines(run: Any) -> dict[str, float]:
    """The headline scores of `scores`."""
    found = scores(run)
    return {name: found[name]["value"] for name in HEADLINES if name in found}


def scores(run: Any) -> dict[str, dict[str, Any]]:
    """The scores of this step, with the weights that the family generates with; damaged files are left out.

    By name: ``value``, ``n``, and ``feature_space`` where there is one.
    """
    found: dict[str, dict[str, Any]] = {}
    weights = run.method.weights if has_ema(run.state) else "raw"
    for path in sorted(run.directory.evaluation.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            metric, value, protocol = record["metric"], float(record["value"]), record["protocol"]
            if (protocol["step"], protocol["weights"]) == (run.step, weights):
                found[metric] = {"value": value, "n": int(record["n"])}
                if "features" in protocol:
                    found[metric]["feature_space"] = str(protocol["features"]["feature_space"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _grid(run: Any) -> str:
    """A PNG: the grid that training drew at this step, or a few images drawn now."""
    kept = run.directory.samples / f"step_{run.step:07d}.png"
    if kept.is_file():
        drawn = kept.read_bytes()
    else:
        drawn = images.png(images.grid(run.generate(jax.random.key(0), NUM_IMAGES)))
    return f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
