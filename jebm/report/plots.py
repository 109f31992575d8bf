"""Pictures of a report: nearest neighbours and films as images, curves and histograms as markup.

Curves are SVG elements that a page holds itself: their text keeps its size on a telephone, their colours are those of
the page (`jebm.report.page.STYLE`), light or dark, and a page with twenty of them is small.
"""

import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jebm.images import grid, picture

__all__ = ["animation", "curve", "fitted", "histograms", "nearest", "short", "side_by_side", "smoothed", "ticks"]

BLOCK = 1000  # training images at once
FILM = 480  # pixels on the longer side of a film, at most
MOST_POINTS = 240  # of a curve: more cannot be told apart
WIDTH, HEIGHT = 340, 170  # of a plot, in pixels of the page where it has room
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 8, 22  # its margins


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
    return grid(np.concatenate(list(rows)), columns=len(rows[0]))


def animation(frames: Sequence[np.ndarray], *, milliseconds: int = 120, smallest_side: int = 240) -> bytes:
    """A GIF that repeats, of uint8 [H, W, 1 or 3] frames; the first and the last stay a second longer.

    Frames of more than `FILM` pixels on a side are made smaller: a film is in a page as it is.
    """
    pictures = [picture(frame, smallest_side).convert("RGB") for frame in frames]
    for frame in pictures:
        frame.thumbnail((FILM, FILM))
    buffer = io.BytesIO()
    times = [milliseconds] * len(pictures)
    times[0] += 1000
    times[-1] += 1000
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], loop=0, duration=times)
    return buffer.getvalue()


def fitted(content: bytes, most: int) -> bytes:
    """A PNG file, made smaller where it has more than ``most`` pixels on a side."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) <= most:
            return content
        picture.thumbnail((most, most))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
    return buffer.getvalue()


# --- markup -----------------------------------------------------------------------------------------------------------


def curve(
    lines: Sequence[Sequence[tuple[float, float]]],
    *,
    smooth: bool = False,
    logarithmic: bool = False,
    label: str = "step",
) -> str:
    """An SVG element: lines through ``(x, y)`` points, the first in the colour of the page.

    Args:
        lines: at least one, none of them empty; finite.
        smooth: a running mean stands out, the points are faint.
        logarithmic: the x axis.
        label: of the x axis.
    """
    arrays = [np.asarray(points, float) for points in lines]
    means = [smoothed(points[:, 1]) if smooth else points[:, 1] for points in arrays]
    values = np.concatenate([points[:, 1] for points in arrays])
    outer = np.quantile(values, [0.01, 0.99]) if smooth else np.array([values.min(), values.max()])
    low, high = _widened(*np.stack([outer, _bounds(means)]).T)
    x = np.concatenate([points[:, 0] for points in arrays])
    left, right = _widened(x[:1], x[-1:]) if x.min() == x.max() else (x.min(), x.max())
    turn = (lambda v: np.log10(v)) if logarithmic else (lambda v: v)

    def place(xs: np.ndarray, ys: np.ndarray) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (turn(xs) - turn(left)) / (turn(right) - turn(left))
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - np.clip(ys, low, high)) / (high - low)
        chosen = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MOST_POINTS)).round().astype(int))
        return " ".join(f"{across[i]:.1f},{down[i]:.1f}" for i in chosen)

    across = [float(v) for v in np.unique(x)] if logarithmic else ticks(left, right, 4)
    body = [_axes(ticks(low, high, 4), across, lambda v: place(np.array([v]), np.array([low])), (low, high), label)]
    for number, (points, mean) in enumerate(zip(arrays, means, strict=True)):
        if smooth and len(points) > 2:
            body.append(f"<polyline class='faint' points='{place(points[:, 0], points[:, 1])}'/>")
        body.append(f"<polyline class='line c{number % 6}' points='{place(points[:, 0], mean)}'/>")
    return _svg("".join(body))


def histograms(values: Mapping[str, np.ndarray], label: str) -> str:
    """An SVG element with outlines over common bins, the middle 98 % of all values, and its key.

    Heights are square roots of shares, so that a wide set is seen beside a narrow one.
    """
    everything = np.concatenate(list(values.values()))
    low, high = _widened(*np.quantile(everything, [[0.01], [0.99]]))
    edges = np.linspace(low, high, 41)
    heights = {name: np.histogram(np.clip(v, low, high), edges)[0] / len(v) for name, v in values.items()}
    top = max(height.max() for height in heights.values())
    width = 480
    across = 8 + (width - 16) * (edges - low) / (high - low)
    bottom = HEIGHT - BOTTOM
    place = lambda v: f"{8 + (width - 16) * (v - low) / (high - low):.1f},{bottom}"  # noqa: E731
    body = [_axes([], ticks(low, high, 6), place, (low, high), label, width)]
    for number, counts in enumerate(heights.values()):
        down = bottom - (bottom - TOP) * np.sqrt(counts / top)
        steps = "".join(f"L{across[i]:.1f} {d:.1f}L{across[i + 1]:.1f} {d:.1f}" for i, d in enumerate(down))
        body.append(
            f"<path class='area c{number % 6}' d='M{across[0]:.1f} {bottom}{steps}L{across[-1]:.1f} {bottom}'/>"
        )
    key = "".join(
        f"<li class='c{number % 6}'>{html.escape(f'{name} ({len(v):,})')}</li>"
        for number, (name, v) in enumerate(values.items())
    )
    return f"{_svg(''.join(body), width)}<ul class='key'>{key}</ul>"


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running means over a tenth of the points, fewer towards the ends: as long as ``values``."""
    half = len(values) // 20
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    reach = np.minimum(half, np.minimum(middle, middle[::-1]))
    return (sums[middle + reach + 1] - sums[middle - reach]) / (2 * reach + 1)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most + 1`` round numbers in [low, high], evenly spaced: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for people: four digits, thousands apart."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.').replace('-', '−')}·10{_raised(int(exponent))}"
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _bounds(arrays: Sequence[np.ndarray]) -> np.ndarray:
    everything = np.concatenate(arrays)
    return np.array([everything.min(), everything.max()])


def _widened(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
    """From the least to the greatest, at least two in a hundred of their size apart: noise is not to look like news."""
    low, high = float(np.min(lows)), float(np.max(highs))
    least = max(0.02 * max(abs(low), abs(high)), 1e-12)
    if high - low >= least:
        return low, high
    middle = (low + high) / 2
    return middle - least / 2, middle + least / 2


def _axes(down, across, place, limits, label, width=WIDTH) -> str:  # type: ignore[no-untyped-def]
    """Lines and numbers of both axes; ``place`` gives the foot of an x."""
    low, high = limits
    parts = []
    for value in down:
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        parts.append(f"<line class='rule' x1='{LEFT}' x2='{width - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 5}' y='{y + 3.5:.1f}' text-anchor='end'>{short(value)}</text>")
    for value in across:
        x, y = place(value).split(",")
        parts.append(f"<line class='rule' x1='{x}' x2='{x}' y1='{TOP}' y2='{y}'/>")
        anchor = "end" if float(x) > width - 40 else "middle"
        parts.append(f"<text x='{x}' y='{HEIGHT - 7}' text-anchor='{anchor}'>{short(value)}</text>")
    parts.append(f"<title>{html.escape(label)}</title>")
    return "".join(parts)


def _svg(body: str, width: int = WIDTH) -> str:
    return f"<svg viewBox='0 0 {width} {HEIGHT}' role='img'>{body}</svg>"
