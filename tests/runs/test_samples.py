"""Samples in batches: killed and gone on with the same images, on any number of devices."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TESTS

import jebm
from jebm import sharding
from jebm.commands.main import main
from jebm.config import load_file
from jebm.runs import samples as sampling
from jebm.runs.directory import RunDirectory
from jebm.training import train


@pytest.fixture(scope="module")
def toy_run(toy_experiment, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "toy"
    train(load_file(toy_experiment), RunDirectory(directory), lambda line: None)
    return directory


def arrays(path):
    with np.load(path) as file:
        return file["x"]


def test_killed_and_gone_on(toy_run, tmp_path):
    out, parts = tmp_path / "x.npz", tmp_path / "x.npz.parts"
    line = "import sys, helpers.toy; from jebm.commands.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["sample", str(toy_run), "--num", "20001", "--batch-size", "20"]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    process = subprocess.Popen(
        [sys.executable, "-c", line, *words, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (parts / "000003.npy").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    kept = len(list(parts.glob("*.npy")))
    assert 4 <= kept < 1001

    # gone on, as if no more had been asked for; what is there is not drawn again
    note, num, seen = parts / "request.json", 20 * kept + 1, []
    note.write_text(note.read_text().replace("20001", str(num)))
    np.save(parts / "000000.npy", np.zeros((20, 8, 8, 1), np.uint8))
    (parts / "000001.npy").unlink()
    run = jebm.load(toy_run)
    sampling.draw_to(out, run, num, batch_size=20, progress=seen.append)
    assert seen == [0] + [20] * kept + [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]
    sampling.draw_to(tmp_path / "whole.npz", run, num, batch_size=20)
    x, whole = arrays(out), arrays(tmp_path / "whole.npz")
    assert (x[:20] == 0).all()
    np.testing.assert_array_equal(x[20:], whole[20:])
    assert (whole.shape, len({image.tobytes() for image in whole})) == ((num, 8, 8, 1), num)


def test_devices_change_no_sample_and_each_draws_its_share(toy_run, tmp_path, monkeypatch):
    run, mesh = jebm.load(toy_run), sharding.make_mesh
    assert jax.device_count() == 2
    for number in (1, 2):
        monkeypatch.setattr(sharding, "make_mesh", lambda number=number: mesh(number))
        sampling.draw_to(tmp_path / f"{number}.npz", run, 13, batch_size=5)  # two devices draw six, and drop one
    np.testing.assert_array_equal(arrays(tmp_path / "1.npz"), arrays(tmp_path / "2.npz"))
    assert arrays(tmp_path / "2.npz").shape == (13, 8, 8, 1)


def test_parts_of_another_request_are_not_taken(toy_run, tmp_path, capsys):
    parts = tmp_path / "x.npz.parts"
    parts.mkdir()
    (parts / "request.json").write_text('{"seed": 7}')
    np.save(parts / "000000.npy", np.zeros((4, 8, 8, 1), np.uint8))
    words = ["sample", str(toy_run), "--num", "4", "--out", str(tmp_path / "x.npz")]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "4/4" in captured.err  # progress
    assert (arrays(tmp_path / "x.npz") != 0).any()


def listing(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {
    "a thesis": {"thesis.txt": b"x"},
    "arrays of the user's": {"000000.npy": b"x"},
    "a request of the user's": {"request.json": b'{"url": "x"}'},
    "a request that is none": {"request.json": b"{"},
    "parts, and a thesis": {"request.json": b'{"seed": 7}', "000000.npy": b"x", "thesis.txt": b"x"},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_of_the_users_is_not_deleted(what, toy_run, tmp_path, capsys):
    parts = tmp_path / "mine.parts"
    parts.mkdir()
    for name, content in FOREIGN[what].items():
        (parts / name).write_bytes(content)
    before = listing(tmp_path)
    assert main(["sample", str(toy_run), "--num", "4", "--out", str(tmp_path / "mine")]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"jebm: {parts} is not a folder of 'jebm sample'")
    assert listing(tmp_path) == before


def test_what_is_there_is_not_overwritten(toy_run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/000000.png").write_bytes(b"x")
    (tmp_path / "mine.parts").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "x.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for out, words in {"mine": "mine.parts is not a folder", "file": "is a file", "x.png": "is a folder"}.items():
        assert main(["sample", str(toy_run), "--num", "4", "--out", str(tmp_path / out)]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "mine.parts").unlink()
    assert main(["sample", str(toy_run), "--num", "4", "--out", str(tmp_path / "mine")]) == 2
    assert "holds files already" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path.name != "mine.parts"]


def test_a_model_that_diverged_leaves_nothing(toy_run, tmp_path):
    run = jebm.load(toy_run)
    nan = lambda a: jnp.full_like(a, jnp.nan) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    broken = dataclasses.replace(run, state=jax.tree.map(nan, run.state))
    with pytest.raises(ValueError, match="the model has diverged"):
        sampling.draw_to(tmp_path / "x.npz", broken, 4)
    assert list(tmp_path.iterdir()) == []
