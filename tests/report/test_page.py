"""The report of a run directory that was put together by hand: what it shows, and that a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess
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
from jebm.evaluation import Record, write_record
from jebm.images import save_png
from jebm.methods.base import Chain
from jebm.report import page as report
from jebm.report import plots as pictures
from jebm.report.film import MOVES, NUM_FRAMES, NoFilm, movement, walk
from jebm.runs.directory import RunDirectory

PROTOCOL = {"step": 40, "weights": "ema"}
SECTIONS = ["Experiment", "Samples", "Nearest training images", "Scores", "Energies", "A chain", "Long run", "Training"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> RunDirectory:
    found = RunDirectory(tmp_path_factory.mktemp("runs") / "by <hand>")
    random = np.random.default_rng(0)
    method = methods.DenoisingEBMConfig(image_size=8, channels=1, multipliers=(1, 2))
    found.write_config(Config(method=method, data=DataConfig("digits")))
    lines = [{"step": step, "loss": 1 / step, "step_time": 0.1} for step in (10, 20, 40)]
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (20, 40):
        save_png(found.samples / f"step_{step:08d}.png", random.integers(0, 256, (19, 19, 1), dtype=np.uint8))
    evaluation = found.evaluation
    interval = {"bootstrap_interval_95": [0.5, 0.75], "auroc_of_compressed_size": 0.1234}
    write_record(evaluation, Record("auroc_constant", 0.625, 297, {**PROTOCOL, **interval}))
    space = {"features": {"feature_space": "FD-random"}}
    write_record(evaluation, Record("frechet_distance", 3.25, 100, {**PROTOCOL, **space}))
    for m in (1, 10, 100):
        write_record(evaluation, Record(f"long_run_energy_{m}x", float(m), 32, PROTOCOL))
    samples = data.load("digits").train[[5, 700, 1400] * 5]
    np.savez(evaluation / "samples-ema-step00000040-n15.npz", x=samples)
    np.savez(evaluation / "samples-ema-step00000009-n2.npz", x=255 - samples[:2])
    scores = {f"energy/{name}": random.normal(i, 1, 50) for i, name in enumerate(("in", "samples", "uniform_noise"))}
    np.savez(evaluation / "ood_scores-ema-step00000040.npz", **scores)
    frames = random.integers(0, 256, (7, 9, 8, 8, 1), dtype=np.uint8)
    np.savez(evaluation / "chain-ema-step00000040.npz", x=frames, every=np.array(3))
    report.write(found)
    return found


def embedded(page: str, name: str) -> bytes:
    return base64.b64decode(re.search(rf"alt='{name}' src='data:image/[a-z+]*;base64,([^']*)'", page)[1])


def test_every_section_is_there_and_nothing_comes_from_outside(directory):
    page = directory.report.read_text()
    assert [title for title in re.findall("<h2>(.*?)</h2>", page) if title != "Configuration"] == SECTIONS
    assert "by &lt;hand&gt;" in page
    assert "://" not in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    for text in ("DenoisingEBMConfig on digits", "40 of 1,000", "0.625 [0.500, 0.750]", "0.123", "FD-random"):
        assert text in page
    assert not list(directory.path.glob("*.tmp"))


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
    assert re.findall("<h2>(.*?)</h2>", bare.report.read_text()) == ["Experiment", "Configuration"]


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
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Experiment", "Scores", "Energies", "Training", "Recoveries", "Configuration",
    ]  # fmt: skip
    assert set(re.findall(r"<(\w+)", page)) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "td", "th", "img", "pre",
    }  # fmt: skip
    assert not re.search(r"<script|<img src|onerror=alert\(1\)>", page)
    assert page.count("&lt;script&gt;") >= 6
    for picture in re.findall(r"src='data:image/svg\+xml;base64,([^']*)'", page):
        assert b"<script" not in base64.b64decode(picture)


def test_what_does_not_move_is_no_film(directory, tmp_path):
    copy = RunDirectory(shutil.copytree(directory.path, tmp_path / "run"))
    still = np.full((7, 9, 8, 8, 1), 100, np.uint8)
    path = copy.evaluation / "chain-ema-step00000040.npz"
    for levels, shown in ((0, False), (15, False), (17, True)):
        still[-1] = 100 + levels
        np.savez(path, x=still, every=np.array(3))
        report.write(copy)
        assert ("<h2>A chain</h2>" in copy.report.read_text()) == shown


def chain_run(tmp_path, energy, step_size, num_steps=10, temperature=1e-14):
    """A run of two pixels that starts at 0 and walks on T E as good as without noise."""
    generate = lambda key, state, n: jnp.zeros((n, 1, 2, 1))  # noqa: E731
    method = SimpleNamespace(
        chain=Chain(num_steps, step_size), generate=generate, temperature=temperature, weights="raw",
        energy=lambda state: bind(lambda x: energy(x) / temperature),
    )  # fmt: skip
    config = SimpleNamespace(evaluation=SimpleNamespace(seed=0))
    return SimpleNamespace(directory=RunDirectory(tmp_path), config=config, method=method, state=jnp.zeros(()), step=3)


@pytest.mark.parametrize("step_size", [1e-2, 1e-3, 1e-4])
def test_a_chain_is_walked_until_it_moves(step_size, tmp_path):
    """E = -sum x: without noise each step adds the step size, so the film's frames are known to the level."""
    path = walk(chain_run(tmp_path, lambda x: -jnp.sum(x), step_size))
    with np.load(path) as file:
        frames, every = file["x"], int(file["every"])
    assert movement(frames) >= MOVES
    assert NUM_FRAMES < len(frames) <= 2 * NUM_FRAMES + 1
    expected = np.round((np.arange(len(frames)) * every * step_size + 1) * 127.5)
    np.testing.assert_allclose(frames.mean((1, 2, 3, 4)), expected, atol=1)


def test_a_chain_that_shows_nothing(tmp_path):
    old = tmp_path / "evaluation/chain-raw-step00000003.npz"
    old.parent.mkdir()
    old.write_bytes(b"of an earlier version")
    with pytest.raises(NoFilm, match=r"in 2,560 steps images move by 3\.0 of 255 levels"):
        walk(chain_run(tmp_path, lambda x: -jnp.sum(x), 1e-5))
    assert not old.exists()
    with pytest.raises(NoFilm, match="no longer finite"):
        walk(chain_run(tmp_path, lambda x: jnp.sum(x**4 - x), 1e3))


ARRAYS = {
    "samples": [{"x": np.array(3)}, {"x": np.zeros((2, 8, 8, 1))}, {"x": np.zeros((2, 9, 9, 1), np.uint8)}, {}],
    "ood_scores": [{"energy/in": np.array(1.0)}, {"energy/in": np.array([])}, {"energy/in": np.array(["a"])}, {},
                   {"energy/in": np.array([np.nan])}],
    "chain": [{"x": np.zeros((2, 9, 8, 8, 1), np.uint8)}, {"x": np.zeros((2, 8), np.uint8), "every": np.array(1)},
              {"x": np.zeros((2, 9, 8, 8, 1), np.uint8), "every": np.array("x")}],
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
    monkeypatch.setattr(report, "read_metrics", lambda path: [json.loads(line) for line in LINES])
    report.write(copy)
    monkeypatch.setattr(report, "read_metrics", lambda path: [{"step": 3, "event": "recovery", "attempt": 1}])
    with pytest.raises(report.DamagedFile, match="has no detected, restored, reason"):
        report.write(copy)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_a_browser_shows_every_picture(directory, tmp_path):
    probe = (
        "<script>onload = () => { const shown = [...document.images].filter(i => i.complete && i.naturalWidth > 0);"
        "document.body.dataset.pictures = document.images.length; document.body.dataset.shown = shown.length;"
        "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth; }</script>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text(directory.report.read_text().replace("</body>", f"{probe}</body>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1100,900", "--virtual-time-budget=5000", "--dump-dom",
        copy.as_uri(),
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-pictures="7" data-shown="7"' in page
    assert 'data-wide="false"' in page
