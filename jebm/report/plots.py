"""Pictures of a trained model for its report: nearest neighbours, a walking chain, histograms of energies."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from jebm.images import grid, picture

__all__ = ["animation", "curves", "histograms", "nearest", "side_by_side"]

BLOCK = 1000  # training images at once


def nearest(images: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training image nearest to each image in Euclidean distance on pixels, and that distance.

    Args:
        images: uint8 [n, H, W, C].
        training: uint8 [N, H, W, C].

    Returns:
        int64 [n], and float64 [n], the root mean square difference in levels.
    """
    x = images.reshape(len(images), -1).astype(np.float64)
    best, index = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for start in range(0, len(training), BLOCK):
        y = training[start : start + BLOCK].reshape(-1, x.shape[1]).astype(np.float64)
        distance = np.square(x).sum(1)[:, None] - 2 * x @ y.T + np.square(y).sum(1)
        at = distance.argmin(1)
        closer = distance[np.arange(len(x)), at] < best
        index[closer] = start + at[closer]
        best = np.minimum(best, distance[np.arange(len(x)), at])
    return index, np.sqrt(np.maximum(best, 0) / x.shape[1])


def side_by_side(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of uint8 images [n, H, W, C] each, one above the other: uint8 [rows * (H + 1) + 1, n * (W + 1) + 1, C]."""
    from jebm.images import from_uint8

    return grid(from_uint8(np.concatenate(list(rows))), columns=len(rows[0]))


def animation(frames: Sequence[np.ndarray], *, milliseconds: int = 120, smallest_side: int = 240) -> bytes:
    """A GIF that repeats, of uint8 [H, W, 1 or 3] frames; the last stays a second longer."""
    pictures = [picture(frame, smallest_side).convert("RGB") for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], loop=0,
        duration=[milliseconds] * (len(pictures) - 1) + [milliseconds + 1000],
    )  # fmt: skip
    return buffer.getvalue()


def histograms(values: Mapping[str, np.ndarray], label: str) -> bytes:
    """One SVG of outlines over common bins, the middle 98 % of all values; areas are equal."""
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, [0.01, 0.99])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    figure = _figure(8, 3)
    axes = figure.add_subplot()
    bins = np.linspace(low, high, 41)
    for i, (name, numbers) in enumerate(values.items()):
        style = {"color": f"C{i}", "label": _plain(f"{name} (n = {len(numbers):,})")}
        axes.hist(np.clip(numbers, low, high), bins, density=True, histtype="step", linewidth=1.5, **style)
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], *, logarithmic: bool = False) -> bytes:
    """One SVG of small panels, each a curve through ``(x, y)`` points."""
    columns = min(3, len(lines))
    rows = -(-len(lines) // columns)
    figure = _figure(4 * columns, 2.6 * rows)
    for i, (name, points) in enumerate(lines.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_title(_plain(name.replace("_", " ")), fontsize=10)
        axes.tick_params(labelsize=8)
    return _svg(figure)


def _plain(text: str) -> str:
    """Not to be read as a formula."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure) -> bytes:  # type: ignore[no-untyped-def]
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jebm"}):  # the same picture is the same file
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
