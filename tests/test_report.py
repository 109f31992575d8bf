"""The report of a run directory that was put together by hand: what it shows, and that a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jebm import data, methods, pictures, report
from jebm.config import Config, DataConfig
from jebm.evaluation import Record, write_record
from jebm.images import save_png
from jebm.runs import RunDirectory

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
