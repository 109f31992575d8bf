"""Figures of energies and chains for notebooks: matplotlib figures, returned; nothing of matplotlib's state is touched.

figure = jebm.plot.landscape(problem.energy, problem.extent, chains=info["position"])
figure.savefig("landscape.png")
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import images
from jebm.energy import Energy, PyTree, as_partial, require_int
from jebm.errors import short_traceback

__all__ = [
    "autocorrelation", "energy_histograms", "film", "image_grid", "interpolation", "ladder", "landscape", "traces",
]  # fmt: skip

COORDINATES = 4  # of a trace, when not chosen


@short_traceback
def landscape(
    energy: Energy,
    extent: float | tuple[float, float, float, float],
    *,
    chains: Array | None = None,
    temperature: float = 1.0,
    resolution: int = 160,
) -> Any:
    """The density ``exp(-E/T)`` of an energy in one or two dimensions, with the paths of chains.

    Args:
        energy: E of one example, float [1] or [2].
        extent: half the side of a square about 0, or ``(left, right, bottom, top)`` in two dimensions.
        chains: positions [chains, draws, d], d = 1 or 2, or None for an energy in two dimensions; starts are circles,
            ends are dots.
        temperature: T.
        resolution: points a side.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: chains that are not [chains, draws, 1 or 2].
    """
    paths = np.zeros((0, 1, 2)) if chains is None else _paths(chains)
    figure, (axes,) = _figure(1, (5.0, 4.6))
    _draw_landscape(axes, energy, extent, temperature, resolution, paths.shape[2])
    for path in paths:
        along = path if path.shape[1] == 2 else np.stack([path[:, 0], np.arange(len(path))], 1)
        target = axes if path.shape[1] == 2 else _twin(axes)
        (line,) = target.plot(*along.T, linewidth=0.7, alpha=0.8)
        target.plot(*along[0], "o", markerfacecolor="none", color=line.get_color(), markersize=5, zorder=3)
        target.plot(*along[-1], "o", color=line.get_color(), markeredgecolor="black", markersize=5, zorder=3)
    return figure


@short_traceback
def film(
    energy: Energy,
    positions: Array,
    extent: float | tuple[float, float, float, float],
    *,
    temperature: float = 1.0,
    num_frames: int = 40,
    milliseconds: int = 100,
) -> bytes:
    """A GIF of chains that walk on the landscape of their energy: ``IPython.display.Image(data=...)`` shows it.

    Args:
        energy: E of one example, float [2].
        positions: [chains, draws, 2].
        extent: as in `landscape`.
        temperature: T.
        num_frames: at most, evenly spaced over the draws, the last among them.
        milliseconds: of a frame.

    Returns:
        The file.

    Raises:
        ValueError: positions that are not [chains, draws, 2].
    """
    from PIL import Image

    paths = _paths(positions)
    if paths.shape[2] != 2:
        raise ValueError(f"a film needs positions [chains, draws, 2], got shape {paths.shape}")
    num_frames = min(require_int(num_frames, "num_frames", 1), paths.shape[1])
    figure, (axes,) = _figure(1, (4.0, 3.8))
    _draw_landscape(axes, energy, extent, temperature, 120, 2)
    (dots,) = axes.plot([], [], "o", color="black", markersize=2.5)
    frames = []
    for k in np.linspace(0, paths.shape[1] - 1, num_frames).round().astype(int):
        dots.set_data(*paths[:, k].T)
        axes.set_title(f"draw {k + 1}", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=80)
        frames.append(Image.open(buffer).convert("RGB"))
    file = io.BytesIO()
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return file.getvalue()


def traces(info: Mapping[str, Any], names: Sequence[str] | None = None, *, max_chains: int = 8) -> Any:
    """Traces against the draw, a panel each and a line a chain.

    Args:
        info: of `jebm.sample_chains`: traces [chains, draws], and positions, of whose coordinates the first four are
            drawn.
        names: which traces; by default all.
        max_chains: the first ones are drawn.

    Raises:
        ValueError: a name that is not in ``info``, or nothing to draw.
    """
    unknown = [name for name in names or () if name not in info]
    if unknown:
        raise ValueError(f"traces: there is no {unknown}; there are {sorted(info)}")
    panels = []
    for name in names or info:
        for label, series in _series(name, info[name]):
            panels.append((label, series[:max_chains]))
    if not panels:
        raise ValueError("traces: there is nothing to draw")
    figure, all_axes = _figure(len(panels), (6.5, 1.5 * len(panels) + 0.6), sharex=False)
    for axes, (label, series) in zip(all_axes, panels, strict=True):
        axes.plot(series.T, linewidth=0.7)
        axes.set_ylabel(label)
    all_axes[-1].set_xlabel("draw")
    return figure


def autocorrelation(draws: Array, *, max_lag: int = 50) -> Any:
    """Autocorrelation of a scalar along chains, averaged over them, with the band of independent draws.

    Args:
        draws: [chains, draws], such as ``info["energy"]`` or a coordinate.
        max_lag: the last lag.

    Raises:
        ValueError: draws of another shape, or no more of them than lags.
    """
    x = np.asarray(draws, np.float64)
    if x.ndim != 2 or x.shape[1] <= max_lag:
        raise ValueError(f"autocorrelation to lag {max_lag} needs draws [chains, more than {max_lag}], got {x.shape}")
    centred = x - x.mean()
    count = x.shape[1]
    values = [(centred[:, : count - k] * centred[:, k:]).sum() for k in range(max_lag + 1)]
    figure, (axes,) = _figure(1, (6.0, 3.0))
    axes.bar(np.arange(max_lag + 1), np.array(values) / values[0], width=0.6)
    band = 1.96 / np.sqrt(x.size)
    axes.axhspan(-band, band, color="0.85", zorder=0)
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set(xlabel="lag", ylabel="autocorrelation")
    return figure


def energy_histograms(energies: Mapping[str, Array], *, bins: int = 60) -> Any:
    """Histograms of energies over common bins, one outline for each name, such as data and samples.

    Raises:
        ValueError: no energies, or NaN or infinite ones.
    """
    flat = {name: np.asarray(values, np.float64).ravel() for name, values in energies.items()}
    if not flat or not all(len(values) and np.isfinite(values).all() for values in flat.values()):
        raise ValueError(f"energy_histograms needs finite energies, got { ({k: v.shape for k, v in flat.items()}) }")
    edges = np.histogram_bin_edges(np.concatenate(list(flat.values())), require_int(bins, "bins", 1))
    figure, (axes,) = _figure(1, (6.0, 3.2))
    for name, values in flat.items():
        axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.45, label=name)
    axes.set(xlabel="energy", ylabel="density")
    axes.legend(frameon=False)
    return figure


def image_grid(pictures: Array, *, columns: int | None = None, title: str | None = None) -> Any:
    """A grid of images.

    Args:
        pictures: float [n, H, W, 1 or 3] in [-1, 1], or uint8.
        columns: of the grid; about a square by default.
        title: above it.
    """
    picture = images.grid(pictures, columns)
    height, width = picture.shape[:2]
    figure, (axes,) = _figure(1, (6.0, 6.0 * height / width + (0.3 if title else 0.0)))
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title)
    return figure


@short_traceback
def interpolation(generator: Callable[[PyTree], Array], start: Array, end: Array, *, num: int = 8) -> Any:
    """Images between latents, a row for each pair: along great circles, where the latents of a Gaussian prior lie.

    Args:
        generator: ``z -> image``, of one latent, images float [H, W, C] in [-1, 1].
        start: latents [rows, d].
        end: as ``start``.
        num: images of a row, both ends among them.

    Raises:
        ValueError: latents of different shapes.
    """
    start, end = jnp.asarray(start), jnp.asarray(end)
    if start.ndim != 2 or start.shape != end.shape:
        raise ValueError(f"interpolation needs two sets of latents [rows, d], got {start.shape} and {end.shape}")
    num = require_int(num, "num", 2)
    latents = jax.vmap(jax.vmap(spherical, (0, None, None)), (None, 0, 0))(jnp.linspace(0.0, 1.0, num), start, end)
    pictures = jax.jit(jax.vmap(as_partial(generator)))(latents.reshape(-1, start.shape[1]))
    return image_grid(pictures, columns=num)


def spherical(t: Array, a: Array, b: Array) -> Array:
    """Spherical interpolation; lengths go linearly."""
    lengths = jnp.linalg.norm(a), jnp.linalg.norm(b)
    cosine = jnp.clip(jnp.sum(a * b) / (lengths[0] * lengths[1]), -1.0, 1.0)
    angle = jnp.arccos(cosine)
    apart = angle > 1e-3
    safe = jnp.where(apart, angle, 1.0)
    first = jnp.where(apart, jnp.sin((1 - t) * safe) / jnp.sin(safe), 1 - t)
    second = jnp.where(apart, jnp.sin(t * safe) / jnp.sin(safe), t)
    direction = first * a / lengths[0] + second * b / lengths[1]
    return ((1 - t) * lengths[0] + t * lengths[1]) * direction


def ladder(info: Mapping[str, Any], temperatures: Array, *, chain: int = 0) -> Any:
    """A ladder of temperatures: how often neighbours exchange, and where the replicas of a chain wander, one in colour.

    Args:
        info: of `jebm.sample_chains` with a `jebm.parallel_tempering` kernel and
            ``trace=("swap_acceptance", "walkers")``.
        temperatures: of the kernel, [R].
        chain: whose replicas are drawn.

    Raises:
        ValueError: a trace is missing.
    """
    missing = [name for name in ("swap_acceptance", "walkers") if name not in info]
    if missing:
        raise ValueError(f"ladder needs the traces swap_acceptance and walkers, there is no {missing}")
    acceptance = np.asarray(info["swap_acceptance"]).mean((0, 1))
    walkers = np.asarray(info["walkers"])[chain]
    places = np.argsort(walkers, 1)  # where each walker is
    figure, (above, below) = _figure(2, (6.5, 4.8), sharex=False)
    labels = [f"{cold:.3g}–{hot:.3g}" for cold, hot in zip(temperatures[:-1], temperatures[1:], strict=True)]
    above.bar(np.arange(len(labels)), acceptance)
    above.set_xticks(np.arange(len(labels)), labels)
    above.set(ylim=(0, 1), ylabel="exchange accepted", xlabel="temperatures")
    for walker, path in enumerate(places.T):  # one of them to follow
        style = {"color": "0.8", "linewidth": 0.6} if walker else {"color": "C0", "linewidth": 1.2, "zorder": 3}
        below.plot(path, **style)
    below.set_yticks(np.arange(len(temperatures)), [f"{t:.3g}" for t in temperatures])
    below.set(xlabel="draw", ylabel="temperature")
    return figure


def _figure(panels: int, size: tuple[float, float], sharex: bool = True) -> tuple[Any, Any]:
    figure = _figure_type()(figsize=size, layout="constrained")
    return figure, figure.subplots(panels, 1, squeeze=False, sharex=sharex)[:, 0]


@functools.cache
def _figure_type() -> Any:
    """A figure that a notebook shows as it is, where matplotlib's own are shown once pyplot has drawn one."""
    from matplotlib import figure  # not pyplot, which would keep it

    class Figure(figure.Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Figure


def _paths(chains: Array) -> np.ndarray:
    paths = np.asarray(chains)
    if paths.ndim != 3 or paths.shape[2] not in (1, 2):
        raise ValueError(f"chains must be [chains, draws, 1 or 2], got shape {paths.shape}")
    return paths


def _draw_landscape(
    axes: Any, energy: Energy, extent: Any, temperature: float, resolution: int, dimension: int
) -> None:
    left, right, bottom, top = extent if np.ndim(extent) else (-extent, extent, -extent, extent)
    x = np.linspace(left, right, resolution)
    if dimension == 1:
        energies = np.asarray(_energies(energy, x[:, None]))
        axes.fill_between(x, np.exp(-(energies - energies.min()) / temperature), color="0.85")
        axes.set(xlim=(left, right), ylim=(0, None), xlabel="x", ylabel="exp(-E/T), relative")
        return
    y = np.linspace(bottom, top, resolution)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    energies = np.asarray(_energies(energy, points)).reshape(resolution, resolution)
    density = np.exp(-(energies - np.nanmin(energies)) / temperature)
    axes.imshow(
        np.sqrt(density), origin="lower", extent=(left, right, bottom, top), cmap="Blues", aspect="equal",
        interpolation="bilinear",
    )  # fmt: skip
    if np.isfinite(energies).all():  # lines at each 2 T from the bottom, where there is mass
        levels = energies.min() + temperature * np.arange(1.0, 12.0, 2.0)
        axes.contour(x, y, energies, levels=levels, colors="0.6", linewidths=0.5)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x₁", ylabel="x₂")


def _energies(energy: Energy, points: np.ndarray) -> Array:
    return jax.jit(jax.vmap(as_partial(energy)))(jnp.asarray(points, jnp.float32))


def _twin(axes: Any) -> Any:
    """The axes of the paths of chains on a line, made once: draws go upwards."""
    others = [other for other in axes.figure.axes if other is not axes]
    if others:
        return others[0]
    twin = axes.twinx()
    twin.set_ylabel("draw")
    return twin


def _series(name: str, trace: PyTree) -> list[tuple[str, np.ndarray]]:
    """Labels and arrays [chains, draws] of a trace; of many coordinates the first ones."""
    found: list[tuple[str, np.ndarray]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(trace):
        label = name + jax.tree_util.keystr(path)
        flat = np.asarray(leaf).reshape(*leaf.shape[:2], -1)
        if leaf.ndim == 2:
            found.append((label, flat[..., 0]))
        else:
            indices = list(np.ndindex(leaf.shape[2:]))[:COORDINATES]
            found += [(f"{label}[{', '.join(map(str, i))}]", flat[..., k]) for k, i in enumerate(indices)]
    return found[:COORDINATES]
