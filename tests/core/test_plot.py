"""Figures: what is in them, read back from matplotlib's artists, and nothing global."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

import jebm
from jebm import plot, problems

rng = np.random.default_rng(81)
WALK = np.cumsum(0.2 * rng.normal(size=(3, 30, 2)), 1)


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    return np.asarray(Image.open(buffer).convert("L"))


def test_landscape_has_the_density_and_the_paths():
    problem = problems.banana()
    figure = plot.landscape(problem.energy, (-4.0, 4.0, -3.0, 8.0), chains=WALK, temperature=2.0, resolution=61)
    (axes,) = figure.axes
    shown = axes.images[0].get_array()
    assert shown.shape == (61, 61)
    x, y = np.linspace(-4, 4, 61), np.linspace(-3, 8, 61)
    energies = np.array([float(problem.energy(jnp.array([x[40], y[row]]))) for row in (5, 30)])
    np.testing.assert_allclose(
        shown[5, 40] / shown[30, 40], np.exp(-0.5 * (energies[0] - energies[1]) / 2.0), rtol=1e-4
    )
    assert axes.images[0].origin == "lower"
    lines = [line for line in axes.lines if len(line.get_xdata()) == 30]
    np.testing.assert_allclose([line.get_xydata() for line in lines], WALK)
    ends = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(ends, WALK[:, [0, -1]].reshape(-1, 2))
    assert rendered(figure).std() > 10


def test_a_notebook_shows_a_figure_as_it_is():
    """A formatter that has not heard of matplotlib, as in a notebook where pyplot has drawn nothing yet."""
    shown, _ = DisplayFormatter().format(plot.autocorrelation(WALK[..., 0], max_lag=5))
    assert np.asarray(Image.open(io.BytesIO(shown["image/png"])).convert("L")).std() > 10


def test_landscape_on_a_line_and_of_infinite_energies():
    figure = plot.landscape(problems.double_well().energy, 1.8, chains=WALK[..., :1])
    assert len(figure.axes) == 2
    np.testing.assert_allclose(figure.axes[1].lines[0].get_xdata(), WALK[0, :, 0])
    assert rendered(figure).std() > 5
    rendered(plot.landscape(problems.checkerboard().energy, 2.5))


def test_film_shows_the_draws_to_the_last():
    file = plot.film(problems.banana().energy, WALK, 4.0, num_frames=5)
    picture = Image.open(io.BytesIO(file))
    assert (picture.format, picture.n_frames) == ("GIF", 5)
    frames = []
    for k in range(5):
        picture.seek(k)
        frames.append(np.asarray(picture.convert("L"), float))
    assert all(np.abs(a - b).mean() > 0.05 for a, b in zip(frames, frames[1:], strict=False))
    assert Image.open(io.BytesIO(plot.film(problems.banana().energy, WALK, 4.0, num_frames=500))).n_frames == 30


def test_traces_draw_each_name_and_coordinate():
    info = {"energy": rng.normal(size=(9, 20)), "position": {"z": rng.normal(size=(9, 20, 6))}}
    figure = plot.traces(info, max_chains=5)
    assert [axes.get_ylabel() for axes in figure.axes] == ["energy", *(f"position['z'][{i}]" for i in range(4))]
    assert [len(axes.lines) for axes in figure.axes] == 5 * [5]
    np.testing.assert_allclose(figure.axes[2].lines[4].get_ydata(), info["position"]["z"][4, :, 1])
    assert len(plot.traces(info, ["energy"]).axes) == 1
    assert rendered(figure).std() > 5


def test_autocorrelation_of_an_autoregressive_chain():
    x = np.zeros((40, 2000))
    for k in range(1, 2000):
        x[:, k] = 0.7 * x[:, k - 1] + rng.normal(size=40)
    figure = plot.autocorrelation(x, max_lag=10)
    heights = [bar.get_height() for bar in figure.axes[0].patches][:11]
    np.testing.assert_allclose(heights, 0.7 ** np.arange(11), atol=0.03)
    assert rendered(figure).std() > 5


def test_energy_histograms_share_their_bins():
    given = {"data": rng.normal(size=2000), "samples": 2.0 + rng.normal(size=(500, 2))}
    figure = plot.energy_histograms(given, bins=20)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "samples"]
    left = [min(patch.get_xy()[:, 0]) for patch in axes.patches]
    assert left[0] == left[1]
    assert rendered(figure).std() > 5


def test_image_grids_and_interpolations():
    pictures = np.linspace(-1, 1, 6)[:, None, None, None] * np.ones((6, 4, 5, 1))
    for given in (pictures, np.rint(127.5 * (pictures + 1)).astype(np.uint8)):
        shown = plot.image_grid(given, columns=3, title="six").axes[0].images[0].get_array()
        np.testing.assert_allclose([shown[2, 2], shown[8, 14]], [0, 255], atol=1)
    start, end = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 3.0], [0.0, 2.0]])
    seen = []

    def generator(z):
        jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
        return jnp.full((4, 4, 1), jnp.tanh(z[0]))

    figure = plot.interpolation(generator, start, end, num=5)
    jax.effects_barrier()
    latents = np.stack(sorted(np.concatenate(seen).reshape(-1, 2).tolist()))
    assert len(latents) == 10
    radii = np.linalg.norm(latents, axis=1)
    # on their circles, and lengths go from one end's to the other's
    np.testing.assert_allclose(np.sort(radii), [1.0, 1.25, 1.5, 1.75, 2.0] + [3.0] * 5, rtol=1e-5)
    circle = 3 * np.sin(np.arange(5) * np.pi / 8)  # evenly spaced in angle
    np.testing.assert_allclose(latents[radii > 2.5][:, 0], circle, atol=1e-5)
    assert rendered(figure).std() > 5


def test_ladder_of_temperatures():
    temperatures = np.array([1.0, 2.0, 4.0])
    kernel = jebm.parallel_tempering(lambda t: jebm.langevin(jebm.energy.standard_normal, 0.1, t), temperatures)
    _, info = jebm.sample_chains(
        jax.random.key(82), kernel, jnp.zeros((2, 2)), 40, trace=("swap_acceptance", "walkers")
    )
    figure = plot.ladder(info, temperatures, chain=1)
    above, below = figure.axes
    heights = [bar.get_height() for bar in above.patches]
    np.testing.assert_allclose(heights, info["swap_acceptance"].mean((0, 1)), rtol=1e-5)
    assert [text.get_text() for text in above.get_xticklabels()] == ["1–2", "2–4"]
    places = np.stack([line.get_ydata() for line in below.lines])  # [walker, draw]
    for k in (0, 17, 39):
        assert info["walkers"][1, k][places[:, k]].tolist() == [0, 1, 2]
    assert rendered(figure).std() > 5


def test_nothing_of_matplotlib_is_touched():
    code = (
        "import sys, jebm, numpy as np; jebm.plot; print('matplotlib' in sys.modules);"
        "jebm.plot.autocorrelation(np.random.default_rng(0).normal(size=(2, 99)));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plot.landscape(jnp.sum, 1.0, chains=np.zeros((2, 3))), r"chains must be \[chains, draws, 1 or 2\]"),
        (lambda: plot.film(jnp.sum, WALK[..., :1], 1.0), r"a film needs positions \[chains, draws, 2\]"),
        (lambda: plot.traces({"energy": WALK}, ["enrgy"]), r"there is no \['enrgy'\]; there are \['energy'\]"),
        (lambda: plot.traces({}), "nothing to draw"),
        (lambda: plot.autocorrelation(WALK[..., 0], max_lag=30), r"needs draws \[chains, more than 30\]"),
        (lambda: plot.energy_histograms({"a": [0.0, np.nan]}), "needs finite energies"),
        (lambda: plot.interpolation(jnp.sum, np.zeros((1, 2)), np.zeros((1, 3))), "two sets of latents"),
        (lambda: plot.ladder({"walkers": 0}, np.ones(2)), r"there is no \['swap_acceptance'\]"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
