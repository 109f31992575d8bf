"""The report of a run directory that was put together by hand: what it shows, and that a browser shows it."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jebm import data, methods
from jebm.commands.main import main
from jebm.config import Config, DataConfig
from jebm.energy import bind
from jebm.errors import ConfigError
from jebm.evaluation import Record, write_record
from jebm.images import png, save_png
from jebm.methods.base import Chain
from jebm.report import found as artefacts
from jebm.report import head, scores
from jebm.report import live as during
from jebm.report import page as report
from jebm.report import plots as pictures
from jebm.report.film import MOVES, NUM_FRAMES, movement, walk
from jebm.runs import starts
from jebm.runs.directory import RunDirectory

START = {"command": "jebm train a.py", "device": "2 × TPU v5", "versions": "jax 9", "commit": "0123456789ab+"}
PROTOCOL = {"step": 40, "weights": "ema"}
SECTIONS = [
    "Samples", "Reconstructions", "Between latents", "Nearest training images", "A chain", "Energies", "Scores",
    "Long run", "Training", "Configuration",
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> RunDirectory:
    found = RunDirectory(tmp_path_factory.mktemp("runs") / "by <hand>")
    random = np.random.default_rng(0)
    method = methods.DenoisingEBMConfig(image_size=8, channels=1, multipliers=(1, 2))
    found.write_config(Config(method=method, data=DataConfig("digits")))
    found.starts.write_text(json.dumps([{**START, "time": 1000.0}]))
    lines = [{"step": step, "energy_gap": 1 / step, "loss": 0.1, "time": 1000.0 + step} for step in (10, 20, 40)]
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (20, 40):
        save_png(found.samples / f"step_{step:08d}.png", random.integers(0, 256, (19, 19, 1), dtype=np.uint8))
    evaluation = found.evaluation
    interval = {"bootstrap_interval_95": [0.5, 0.75], "auroc_of_compressed_size": 0.1234}
    write_record(evaluation, Record("auroc_constant", 0.625, 297, {**PROTOCOL, **interval}))
    space = {"features": {"feature_space": "FD-random"}}
    write_record(evaluation, Record("frechet_distance", 3.25, 100, {**PROTOCOL, **space}))
    write_record(evaluation, Record("frechet_distance_real", 1.5, 100, {**PROTOCOL, **space}))
    write_record(evaluation, Record("precision", 0.75, 100, {**PROTOCOL, **space, "standard_error": 0.125}))
    write_record(evaluation, Record("score_semantic_contrast", 2.5, 100, PROTOCOL))
    for m in (1, 10, 100):
        write_record(evaluation, Record(f"long_run_energy_{m}x", float(m), 32, PROTOCOL))
    samples = data.load("digits").train[[5, 700, 1400] * 5]
    np.savez(evaluation / "samples-ema-step00000040-n15.npz", x=samples)
    np.savez(evaluation / "samples-ema-step00000009-n2.npz", x=255 - samples[:2])
    scores = {f"energy/{name}": random.normal(i, 1, 50) for i, name in enumerate(("in", "samples", "uniform_noise"))}
    np.savez(evaluation / "ood_scores-ema-step00000040.npz", **scores)
    frames = random.integers(0, 256, (7, 9, 8, 8, 1), dtype=np.uint8)
    energy = random.normal(0, 1, (7, 9))
    chain = {"x": frames, "every": np.array(3), "energy": energy, "clean_energy": np.ones(9)}
    np.savez(evaluation / "chain-ema-step00000040.npz", **chain)
    looks = {"original": samples[:3], "reconstruction": samples[3:6], "interpolation": samples.reshape(3, 5, 8, 8, 1)}
    np.savez(evaluation / "looks-ema-step00000040.npz", **looks)
    report.write(found)
    return found


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def embedded(page: str, name: str) -> bytes:
    return base64.b64decode(re.search(rf"alt='{name}' src='data:image/[a-z+]*;base64,([^']*)'", page)[1])


def test_every_section_is_there_and_nothing_comes_from_outside(directory):
    page = directory.report.read_text()
    assert headings(page) == SECTIONS
    assert "by &lt;hand&gt;" in page
    assert "://" not in page
    assert not re.search("<script|<link|@import|url\\(|http-equiv", page)
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    for text in (
        "Denoising-EBM (DenoisingEBMConfig)", "arXiv 2303.03887", "digits, 8 × 8 px, grey", "step 40 of 1,000",
        "1970-01-01 00:16 UTC", "40 s", "2 × TPU v5", "jax 9", "0123456789ab+", "jebm train a.py", "0.500–0.750",
        "0.625", "file size 0.12", "0.75 ± 0.125", "FD-random", "Rise of the semantic energy",
    ):  # fmt: skip
        assert text in page, text
    assert not list(directory.path.glob("*.tmp"))


def test_the_headline_stands_beside_its_yardstick(directory):
    page = directory.report.read_text()
    top = page[page.index("class='card'") : page.index("<h2>")]
    assert "3.25<span class='arrow'> ↓</span>" in top
    assert [float(width) for width in re.findall("width: ([0-9.]+)%", top)] == [
        100.0,
        pytest.approx(100 * 1.5 / 3.25, abs=0.1),
    ]
    assert "real images" in top


@pytest.mark.parametrize(("metric", "arrow"), [
    ("frechet_distance", "↓"), ("fid", "↓"), ("kid", "↓"), ("precision", "↑"), ("recall", "↑"),
    ("reconstruction_psnr", "↑"), ("reconstruction_error", "↓"), ("bits_per_dimension_lower", "↓"),
    ("auroc_constant", "↑"), ("fpr95_x", "↓"),
    ("log_partition_lower", ""), ("score_elbo", "↑"), ("score_energy_gap", ""), ("score_gone", ""), ("new", ""),
])  # fmt: skip
def test_arrows_point_to_the_better(metric, arrow):
    score = scores.explained(metric, methods.ECVAEConfig.SUMMARY.scores)
    assert scores.ARROWS[score.better] == arrow
    assert bool(score.meaning) == (metric not in ("score_gone", "new"))


def test_a_yardstick_is_of_the_same_measurement():
    space = {"features": {"feature_space": "A"}, "split": "test", **PROTOCOL}
    model = Record("fid", 3.0, 10, space)
    real = Record("fid_real", 1.0, 10, space)
    null = Record("fid_mixture", 2.0, 10, space)
    assert scores.yardsticks(model, [null, model, real]) == {"real images": 1.0, "mixture of Gaussians": 2.0}
    for other in ({"step": 41}, {"split": "train"}, {"features": {"feature_space": "B"}}):
        assert scores.yardsticks(model, [model, Record("fid_real", 1.0, 10, {**space, **other})]) == {}


def test_null_models_and_long_runs_are_told(directory, tmp_path):
    run = RunDirectory(shutil.copytree(directory.path, tmp_path / "run"))
    assert "neither known to be a density nor a short-run sampler" in directory.report.read_text()
    space = {"features": {"feature_space": "FD-random"}, "standard_error": 0.1}
    write_record(run.evaluation, Record("frechet_distance_mixture", 2.0, 100, {**PROTOCOL, **space}))
    for m, distance in ((1, 10.0), (100, 13.0)):
        write_record(run.evaluation, Record(f"long_run_distance_{m}x", distance, 200, PROTOCOL))
    report.write(run)
    page = run.report.read_text()
    assert "frechet_distance 3.25: behind the mixture of Gaussians (2)" in page
    assert "mixture of Gaussians: 2" in page
    assert "By them this run is a short-run sampler" in page
    weak = {"space": {"weak": ["its classifier is right in 46% of test images"]}}
    write_record(run.evaluation, Record("frechet_distance", 3.25, 100, {**PROTOCOL, **space, **weak}))
    report.write(run)
    page = run.report.read_text()
    assert "FD-random is a weak space (its classifier is right in 46% of test images): it ranks nothing" in page
    assert "3.25<span class='arrow'>" not in page[: page.index("<h2>")]


def test_time_of_training_leaves_out_what_lies_between_its_parts():
    assert head.trained_seconds([0.0, 100.0], [10.0, 30.0, 105.0, 120.0]) == 30 + 20
    assert head.trained_seconds([0.0, 100.0], [10.0]) == 10  # the second was killed before its first line
    assert head.trained_seconds([0.0], []) == 0


def test_neighbours_are_those_of_the_newest_samples(directory):
    page = directory.report.read_text()
    assert "step 40, ema weights" in page
    assert "differences 0.0 to 0.0 levels" in page  # these samples are training images: the page must tell
    rows = np.asarray(Image.open(io.BytesIO(embedded(page, "nearest"))))
    scale = rows.shape[0] // 19
    above, below = rows[::scale, ::scale][1:9], rows[::scale, ::scale][10:18]
    np.testing.assert_array_equal(above, below)
    np.testing.assert_array_equal(above[:, 1:9], data.load("digits").train[5, ..., 0])


def test_the_chain_moves(directory):
    with Image.open(io.BytesIO(embedded(directory.report.read_text(), "chain"))) as film:
        assert film.n_frames == 7
        assert film.info["loop"] == 0
        stills = [np.asarray(film.convert("L")) for i in range(7) if film.seek(i) is None]
    assert len({still.tobytes() for still in stills}) == 7
    assert "18 in all" in directory.report.read_text()
    moved = np.abs(stills[-1].astype(float) - stills[0]).mean()
    assert moved > MOVES


def test_the_same_files_give_the_same_page(directory):
    before = directory.report.read_text()
    report.write(directory)
    assert directory.report.read_text() == before


def test_a_run_with_little_to_show(tmp_path):
    bare = RunDirectory(tmp_path)
    bare.write_config(Config(method=methods.ECVAEConfig(), data=DataConfig("npz:gone.npz")))
    bare.evaluation.mkdir()
    np.savez(bare.evaluation / "samples-ema-step00000040-n15.npz", x=np.zeros((3, 8, 8, 1), np.uint8))
    report.write(bare)  # the data are gone: no neighbours
    assert headings(bare.report.read_text()) == ["Configuration"]


def test_nearest_by_its_definition(monkeypatch):
    monkeypatch.setattr(pictures, "BLOCK", 7)
    random = np.random.default_rng(1)
    training, images = (random.integers(0, 256, (n, 3, 2, 1), dtype=np.uint8) for n in (40, 9))
    index, distance = pictures.nearest(images, training)
    differences = np.square(images[:, None].astype(float) - training).mean((2, 3, 4))
    np.testing.assert_array_equal(index, differences.argmin(1))
    np.testing.assert_allclose(distance, np.sqrt(differences.min(1)), rtol=1e-9)


SCRIPT = "<script>alert('1')</script><img src=x onerror=alert(1)>$x$"


def test_nothing_in_a_file_becomes_markup(tmp_path):
    """Every text of the configuration, metrics, recoveries, records and arrays' names, and the folder's name."""
    found = RunDirectory(tmp_path / "<script>alert(1)<_script>")
    method = methods.DenoisingEBMConfig(image_size=8, channels=1, multipliers=(1, 2))
    found.write_config(Config(method=method, data=DataConfig(f"npz:{SCRIPT}")))
    lines = [
        {"step": 1, SCRIPT: 2.0},
        {"step": 1, "event": "recovery", "attempt": SCRIPT, "detected": SCRIPT, "restored": SCRIPT, "reason": SCRIPT},
        {"step": 1, "event": "recovery", "attempt": 1, "detected": 1, "restored": 0, "reason": SCRIPT},
        {"step": 2, SCRIPT: 3.0},
    ]
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found.evaluation.mkdir()
    protocol = {"step": 2, "weights": SCRIPT, "features": {"feature_space": SCRIPT}}
    write_record(found.evaluation, Record("frechet_distance", 1.0, 10, {**PROTOCOL, "features": {}}))
    (path,) = found.evaluation.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": protocol}))
    np.savez(found.evaluation / "ood_scores-ema-step00000040.npz", **{"energy/in": np.arange(3.0), "energy/a": [2.0]})
    with zipfile.ZipFile(found.evaluation / "ood_scores-ema-step00000041.npz", "w") as archive:
        for name in ("energy/in", f"energy/{SCRIPT}"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.arange(3.0))
    with pytest.warns(UserWarning, match="line 2 is damaged and left out"):
        report.write(found)
    page = found.report.read_text()
    assert headings(page) == ["Energies", "Scores", "Training", "Recoveries", "Configuration"]
    assert set(re.findall(r"<(\w+)", page)) <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "div", "span", "b", "dl",
        "dt", "dd", "figure", "figcaption", "table", "tr", "td", "th", "img", "pre", "details", "summary", "code",
        "svg", "line", "text", "polyline", "path", "ul", "li",
    }  # fmt: skip
    assert not re.search(r"<script|<img src|onerror=alert\(1\)>", page)
    assert page.count("&lt;script&gt;") >= 6


def test_what_does_not_move_is_no_film(directory, tmp_path):
    copy = RunDirectory(shutil.copytree(directory.path, tmp_path / "run"))
    still = np.full((7, 9, 8, 8, 1), 100, np.uint8)
    path = copy.evaluation / "chain-ema-step00000040.npz"
    for levels, shown in ((0, False), (15, False), (17, True)):
        still[-1] = 100 + levels
        np.savez(path, x=still, every=np.array(3))
        report.write(copy)
        page = copy.report.read_text()
        assert ("data:image/gif" in page) == shown
        assert (f"the kept one moves by {levels}.0 of 255 levels, which no eye sees" in page) == (not shown)
    np.savez(path, reason=np.array("its <chains> are annealed"))
    report.write(copy)
    assert "No film (step 40, ema weights): its &lt;chains&gt; are annealed." in copy.report.read_text()


@pytest.mark.parametrize("step", [30, 1000])
def test_the_page_of_a_training_that_goes_on(directory, tmp_path, step):
    """It renews itself until it ends, says how far it is, and does nothing that takes long."""
    run = RunDirectory(tmp_path / "run")
    run.write_config(directory.read_config())
    run.metrics.write_text(json.dumps({"step": step, "denoising_loss": 0.5, "energy_gap": 2.0, "time": 5.0}) + "\n")
    save_png(run.samples / "step_0000030.png", np.zeros((19, 19, 1), np.uint8))
    source = data.load("digits")
    report.write(run, source, live=True)
    page = run.report.read_text()
    assert "http-equiv='refresh' content='20'" in page
    assert "Test images of digits" in page
    assert ("Step 30 of 1,000" in page) == ("denoising loss 0.5, energy gap 2" in page) == (step == 30)
    said = []
    with contextlib.ExitStack() as training:
        training.enter_context(pytest.raises(SystemExit))
        training.enter_context(during.during(run, "jebm train x", said.append))(source)
        page = run.report.read_text()
        sys.exit(0)
    assert said == [f"report: {run.report} shows this training while it goes on"]
    assert "jebm train x" in page
    assert "http-equiv='refresh'" in page
    still = run.report.read_text()
    assert "refresh" not in still
    assert "training was interrupted" in still


def test_a_report_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    clock, written = [0.0], []

    def write(directory, source, live):
        written.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr(during.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(during.page, "write", write)
    run = RunDirectory(tmp_path)
    with during.during(run, "jebm train x", print) as on_grid:
        assert not run.starts.exists()  # a training that is refused leaves nothing
        for clock[0] in (0.0, 10.0, 60.0, 99.0, 103.0, 150.0, 202.0, 204.0):
            on_grid(None)
    assert written == [0.0, 103.0, 204.0]
    (start,) = starts.read(run.starts)
    assert start.command == "jebm train x"
    assert {"jebm", "jax"} <= {part.split()[0] for part in start.versions.split(", ")}


def test_starts_are_rows_that_stay(tmp_path):
    path = tmp_path / "starts.json"
    assert starts.read(path) == []
    first, second = starts.Start(1.0, "a", "b", "c", ""), starts.Start(2.5, "d", "e", "f", "g+")
    starts.add(path, first)
    starts.add(path, second)
    assert starts.read(path) == [first, second]
    for text in (
        "",
        "{}",
        "[1]",
        '[{"time": 1}]',
        json.dumps([{**START, "time": "x"}]),
        json.dumps([{**START, "time": 1, "device": 2}]),
    ):
        path.write_text(text)
        if text != "{}":
            with pytest.raises(ConfigError, match=r"starts.json cannot be read: .*; move it away"):
                starts.read(path)


def test_durations():
    assert [starts.duration(s) for s in (0.4, 59.4, 60, 192, 3600, 7999)] == [
        "0 s", "59 s", "1 min 0 s", "3 min 12 s", "1 h 0 min", "2 h 13 min",
    ]  # fmt: skip


# --- plots ------------------------------------------------------------------------------------------------------------


def points_of(svg, kind="line"):
    text = re.findall(rf"<polyline class='{kind}[^']*' points='([^']*)'", svg)
    return [np.array([pair.split(",") for pair in line.split()], float) for line in text]


def test_a_curve_is_where_its_axes_say():
    """The places of two ticks give the scale; a point between them must lie there."""
    points = [(20.0, 1.0), (50.0, 3.0), (100.0, 2.0)]
    svg = pictures.curve([points])
    rules = re.findall(r"<line class='rule' x1='([\d.]+)' x2='([\d.]+)' y1='([\d.]+)' y2='([\d.]+)'/>", svg)
    labels = [text.replace(",", "") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    across = {float(label): float(x1) for (x1, x2, _, _), label in zip(rules, labels, strict=True) if x1 == x2}
    down = {float(label): float(y1) for (x1, x2, y1, _), label in zip(rules, labels, strict=True) if x1 != x2}
    (drawn,) = points_of(svg)
    for values, places, axis in ((across, drawn[:, 0], 0), (down, drawn[:, 1], 1)):
        slope, offset = np.polyfit(list(values), list(values.values()), 1)
        np.testing.assert_allclose(places, slope * np.array(points)[:, axis] + offset, atol=0.2)


def test_noise_of_a_constant_looks_like_one():
    drawn = points_of(pictures.curve([[(i, 30.0 + 0.01 * (i % 2)) for i in range(9)]]))[0][:, 1]
    assert np.ptp(drawn) < 5  # of 140 pixels


def test_running_means():
    values = np.random.default_rng(0).normal(size=100)
    mean = pictures.smoothed(values)
    for i, reach in ((0, 0), (2, 2), (50, 5), (97, 2), (99, 0)):
        assert mean[i] == pytest.approx(values[i - reach : i + reach + 1].mean())
    np.testing.assert_allclose(pictures.smoothed(np.arange(60.0)), np.arange(60.0))
    np.testing.assert_array_equal(pictures.smoothed(values[:7]), values[:7])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.1), (1e-9, 3e-9), (29.8, 30.4), (-4e6, -1e6)])
def test_ticks_are_round_and_few(low, high):
    found = pictures.ticks(low, high, 4)
    assert 2 <= len(found) <= 5
    assert low - 1e-9 * abs(low) <= found[0]
    assert found[-1] <= high + 1e-9 * abs(high)
    step = (high - low) / 4
    gaps = np.diff(found)
    np.testing.assert_allclose(gaps, gaps[0])
    assert step <= gaps[0] * (1 + 1e-9)
    assert gaps[0] <= 2.5 * step * (1 + 1e-9)
    assert f"{gaps[0]:.0e}"[0] in "125"


def test_pictures_fit_a_page():
    """64 images of 256 pixels, and their films, must not make a page that no browser opens."""
    random = np.random.default_rng(0)
    wide = png(random.integers(0, 256, (300, 900, 3), dtype=np.uint8))
    assert pictures.fitted(wide, 900) is wide
    with Image.open(io.BytesIO(pictures.fitted(wide, 450))) as smaller:
        assert smaller.size == (450, 150)
    frames = random.integers(0, 256, (2, 600, 1200, 1), dtype=np.uint8)
    with Image.open(io.BytesIO(pictures.animation(list(frames)))) as film:
        assert film.size == (480, 240)
        assert film.n_frames == 2


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0"), (1234.5678, "1,235"), (-27693.78, "−27,694"), (0.625, "0.625"), (-15.1973, "−15.2"),
    (2.5e-6, "2.5·10⁻⁶"), (-1.2e-7, "−1.2·10⁻⁷"), (2.3618520e7, "2.36·10⁷"), (30.014225, "30.01"), (8.8056, "8.806"),
])  # fmt: skip
def test_numbers_for_people(value, text):
    assert pictures.short(value) == text


# --- chains -----------------------------------------------------------------------------------------------------------


def chain_run(tmp_path, energy, step_size, num_steps=10, temperature=1e-14):
    """A run of two pixels that starts at 0 and walks on T E as good as without noise."""
    generate = lambda key, state, n: jnp.zeros((n, 1, 2, 1))  # noqa: E731
    method = SimpleNamespace(
        chain=Chain(num_steps, step_size), generate=generate, temperature=temperature, weights="raw",
        energy=lambda state: bind(lambda x: energy(x) / temperature),
    )  # fmt: skip
    config = SimpleNamespace(evaluation=SimpleNamespace(seed=0))
    return SimpleNamespace(
        directory=RunDirectory(tmp_path), config=config, method=method, state=jnp.zeros(()), step=3, meta={}
    )


@pytest.mark.parametrize("step_size", [1e-2, 1e-3, 1e-4])
def test_a_chain_is_walked_until_it_moves(step_size, tmp_path):
    """E = -sum x: without noise each step adds the step size, so the film's frames are known to the level."""
    path = walk(chain_run(tmp_path, lambda x: -jnp.sum(x), step_size))
    with np.load(path) as file:
        frames, every, energy = file["x"], int(file["every"]), file["energy"]
    assert movement(frames) >= MOVES
    assert NUM_FRAMES < len(frames) <= 2 * NUM_FRAMES + 1
    expected = np.round((np.arange(len(frames)) * every * step_size + 1) * 127.5)
    np.testing.assert_allclose(frames.mean((1, 2, 3, 4)), expected, atol=1)
    # E/T of two pixels, at the frames
    np.testing.assert_allclose(energy[:, 0], -2 * np.arange(len(frames)) * every * step_size / 1e-14, rtol=1e-3)


def test_a_film_of_data_starts_under_noise(tmp_path):
    run = chain_run(tmp_path, lambda x: -jnp.sum(x), 1e-2)
    source = SimpleNamespace(test=np.full((20, 1, 2, 1), 128, np.uint8))
    with np.load(walk(run, source)) as file:
        assert "noise of deviation 0.5" in str(file["start"])
        first = file["x"][0]
        np.testing.assert_allclose(file["clean_energy"], -2 * (128 / 127.5 - 1) / 1e-14, rtol=1e-3)
    assert len(np.unique(first)) > 9
    assert movement(np.stack([np.full_like(first, 128), first])) > MOVES


def test_a_chain_that_shows_nothing(tmp_path):
    for energy, step_size, reason in (
        (lambda x: -jnp.sum(x), 1e-5, "in 2,560 steps images move by 3.0 of 255 levels, which no eye sees"),
        (lambda x: jnp.sum(x**4 - x), 1e3, "within 32 steps it is no longer finite"),
    ):  # fmt: skip
        with np.load(walk(chain_run(tmp_path, energy, step_size))) as file:
            assert file.files == ["reason"]
            assert str(file["reason"]) == reason
    run = chain_run(tmp_path, lambda x: -jnp.sum(x), 1e-2)
    run.method.chain = None
    with np.load(walk(run)) as file:
        assert "annealed" in str(file["reason"])


ARRAYS = {
    "samples": [{"x": np.array(3)}, {"x": np.zeros((2, 8, 8, 1))}, {"x": np.zeros((2, 9, 9, 1), np.uint8)}, {}],
    "ood_scores": [{"energy/in": np.array(1.0)}, {"energy/in": np.array([])}, {"energy/in": np.array(["a"])}, {},
                   {"energy/in": np.array([np.nan])}],
    "chain": [{"x": np.zeros((2, 9, 8, 8, 1), np.uint8)}, {"x": np.zeros((2, 8), np.uint8), "every": np.array(1)},
              {"x": np.zeros((2, 9, 8, 8, 1), np.uint8), "every": np.array("x")}, {"reason": np.array(3)},
              {"x": np.arange(2, dtype=np.uint8)[:, None, None, None, None] * np.full((1, 9, 8, 8, 1), 99, np.uint8),
               "every": np.array(1), "energy": np.zeros((2, 8))},
              {"x": np.arange(2, dtype=np.uint8)[:, None, None, None, None] * np.full((1, 9, 8, 8, 1), 99, np.uint8),
               "every": np.array(1), "energy": np.zeros((2, 9)), "clean_energy": np.array([np.nan])}],
    "looks": [{"original": np.zeros((2, 8, 8, 1), np.uint8)}, {"interpolation": np.zeros((2, 8, 8, 1), np.uint8)}],
}  # fmt: skip
PROTOCOLS = [
    {"step": [40]}, {"step": "x"}, {"features": "text"}, {"bootstrap_interval_95": [1]}, {"standard_error": "x"},
    {"bootstrap_interval_95": ["a", "b"]}, {"auroc_of_compressed_size": []}, {"step": True},
]  # fmt: skip


def refused(run, path, capsys):
    assert main(["report", str(run.path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jebm: ")
    assert err.count("\n") == 1
    assert path.name in err


def test_a_damaged_file_is_named(directory, tmp_path, capsys):
    copy = RunDirectory(shutil.copytree(directory.path, tmp_path / "run"))
    for kind, cases in ARRAYS.items():
        path = next(copy.evaluation.glob(f"{kind}-ema-step00000040*"))
        whole = path.read_bytes()
        for arrays in cases:
            np.savez(path, **arrays)
            refused(copy, path, capsys)
        for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:100] + b"x" * 50 + whole[150:]):
            path.write_bytes(content)
            refused(copy, path, capsys)
        path.write_bytes(whole)
    path = next(copy.evaluation.glob("auroc_constant*.json"))
    whole = json.loads(path.read_text())
    for protocol in PROTOCOLS:
        path.write_text(json.dumps({**whole, "protocol": {**whole["protocol"], **protocol}}))
        refused(copy, path, capsys)
    for text in ("", "[]", "[" * 100_000, '{"format": 1}', json.dumps({**whole, "n": 0}),
                 json.dumps({**whole, "value": "9" * 400}), json.dumps(whole).replace("0.625", "9" * 400),
                 json.dumps(whole).replace("297", "Infinity")):  # fmt: skip
        path.write_text(text)
        refused(copy, path, capsys)
    path.unlink()
    for name in ("chain-x.npz", "samples-ema.npz"):  # not names that jebm gives
        (copy.evaluation / name).write_bytes(b"x")
    assert main(["report", str(copy.path)]) == 0


LINES = [
    "null", "5", "[]", "{}", '{"step": "x"}', '{"step": [1]}', '{"step": 7, "loss": "x"}', '{"step": 8, "loss": [1]}',
    '{"step": 9, "loss": ' + "9" * 400 + "}", '{"step": 10, "loss": null}', '{"step": true}',
]  # fmt: skip


def test_lines_that_are_none_are_left_out(directory, tmp_path, monkeypatch):
    """Whatever `read_metrics` lets through."""
    copy = RunDirectory(shutil.copytree(directory.path, tmp_path / "run"))
    monkeypatch.setattr(artefacts, "read_metrics", lambda path: [json.loads(line) for line in LINES])
    report.write(copy)
    monkeypatch.setattr(artefacts, "read_metrics", lambda path: [{"step": 3, "event": "recovery", "attempt": 1}])
    with pytest.raises(report.DamagedFile, match="has no detected, restored, reason"):
        report.write(copy)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<body><script>onload = () => {
  const frame = document.createElement('iframe');
  frame.width = WIDTH; frame.height = 800;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll('details').forEach(one => one.open = true);
    const out = [...page.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
      && e.getBoundingClientRect().right > WIDTH + 1).map(e => e.tagName + '.' + e.className);
    const shown = [...page.images].filter(i => i.complete && i.naturalWidth > 0);
    const asked = frame.contentWindow.performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'));
    document.title = JSON.stringify({pictures: page.images.length, shown: shown.length, wide: root.scrollWidth, out,
      asked: asked.length});
  };
  frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob('PAGE'), c => c.charCodeAt(0)));
  document.body.append(frame);
}</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_of_it(directory, tmp_path, width):
    """Every picture decodes, nothing is asked of a network, and nothing is wider than the window."""
    page = base64.b64encode(directory.report.read_bytes()).decode()
    probe = tmp_path / "probe.html"
    probe.write_text(f"<!doctype html><title></title>{PROBE.replace('WIDTH', str(width)).replace('PAGE', page)}")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1500,900", "--virtual-time-budget=5000", "--dump-dom",
        probe.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(re.search("<title>(.*?)</title>", shown)[1].replace("&quot;", '"'))
    assert seen["pictures"] == seen["shown"] == directory.report.read_text().count("<img")
    assert seen["asked"] == 0
    assert seen["wide"] <= width, seen["out"]
    assert seen["out"] == []
