"""Runs, data and outputs in an object store, where files are whole, never appended to, and folders are only names."""

import contextlib
import io
import pathlib
import time
import warnings

import jax
import numpy as np
import pytest
from helpers import bucket
from helpers.runs import bits, command

import jebm
from jebm import data, files, paths
from jebm.commands.main import main
from jebm.data import DataError, Loader
from jebm.metrics import inception_weights
from jebm.runs import metrics_log
from jebm.runs.metrics_log import MetricsFile, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.* cannot be locked .object stores")


@pytest.fixture
def objects(monkeypatch):
    with bucket.serving(monkeypatch) as found:
        yield found


def text_of(objects, name):
    return objects[f"bucket/{name}"][0].decode()


def numbers(lines):
    return [{k: v for k, v in line.items() if "time" not in k and "per_second" not in k} for line in lines]


class Killed(BaseException):
    """The end of a process."""


SETTINGS = ("training.num_steps=5", "training.checkpoint_every=2", "training.log_every=1", "training.sample_every=5",
            "training.keep_checkpoints=2", "training.num_samples=4")  # fmt: skip


def test_a_run_in_a_bucket_killed_and_resumed_has_the_bits_of_a_local_one(
    objects, toy_experiment, tmp_path, monkeypatch, capsys
):
    local, remote = tmp_path / "run", "gs://bucket/deep/run"
    assert main(command(toy_experiment, local, *SETTINGS)) == 0
    batch = Loader.batch

    def killed(self, step):
        if step == 4:
            while "bucket/deep/run/checkpoints/2/commit_success.txt" not in objects:  # written behind the loop's back
                time.sleep(0.01)
            raise Killed
        return batch(self, step)

    kept = {}
    save = metrics_log.MetricsFile.close
    # what a killed process leaves: nothing is written behind its last moment
    monkeypatch.setattr(metrics_log.MetricsFile, "close", lambda self: kept.update(objects))
    monkeypatch.setattr(Loader, "batch", killed)
    with pytest.raises(Killed):
        main(command(toy_experiment, remote, *SETTINGS))
    monkeypatch.setattr(metrics_log.MetricsFile, "close", save)
    monkeypatch.setattr(Loader, "batch", batch)
    objects.clear()
    objects.update(kept)
    capsys.readouterr()
    assert main(command(toy_experiment, remote, *SETTINGS)) == 0
    said = capsys.readouterr().out
    assert "jebm: resuming from step 2" in said
    assert f"report        {remote}/report.html" in said

    theirs = read_metrics(paths.place(f"{remote}/metrics.jsonl"))
    assert numbers(theirs) == numbers(read_metrics(local / "metrics.jsonl"))
    assert [line["step"] for line in theirs] == [1, 2, 3, 4, 5]
    run = jebm.load(remote)
    assert bits(run.state) == bits(jebm.load(local).state)
    assert text_of(objects, "deep/run/config.json") == (local / "config.json").read_text()
    for picture in (local / "samples").iterdir():
        assert objects[f"bucket/deep/run/samples/{picture.name}"][0] == picture.read_bytes()
    assert "<title>run</title>" in text_of(objects, "deep/run/report.html")
    steps = {name.split("/")[4] for name in objects if name.startswith("bucket/deep/run/checkpoints/")}
    assert steps == {"4", "5"}
    assert all(f"bucket/deep/run/checkpoints/{step}/files.json" in objects for step in steps)

    # damage is noticed, and the checkpoint set aside
    name = "bucket/deep/run/checkpoints/5/meta/metadata"
    objects.put(name, objects[name][0].replace(b"fingerprint", b"fingerprinT"))
    with pytest.warns(UserWarning, match="step 5 .* is not whole .*: passed over"):
        assert jebm.load(remote).step == 4
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the command prints it
        assert main(command(toy_experiment, remote, *SETTINGS)) == 0
    assert "passed over" in capsys.readouterr().err
    assert "bucket/deep/run/checkpoints_damaged/5/meta/metadata" in objects
    assert bits(jebm.load(remote).state) == bits(run.state)

    out = "gs://bucket/out/x.npz"
    assert main(["sample", remote, "--num", "5", "--batch-size", "3", "--out", out]) == 0
    assert main(["sample", str(local), "--num", "5", "--batch-size", "3", "--out", str(tmp_path / "x.npz")]) == 0
    assert [name for name in objects if name.startswith("bucket/out/")] == ["bucket/out/x.npz"]
    ours = np.load(io.BytesIO(objects["bucket/out/x.npz"][0]))["x"]
    np.testing.assert_array_equal(ours, np.load(tmp_path / "x.npz")["x"])
    assert not list(pathlib.Path().glob("gs:*"))


# --- data and weights ------------------------------------------------------------------------------------------


def test_images_from_a_bucket_are_those_of_the_local_files(objects, tmp_path, key):
    x = np.asarray(jax.random.randint(key, (12, 4, 4, 1), 0, 256)).astype(np.uint8)
    files.write_arrays(tmp_path / "set.npz", {"x": x})
    for i, image in enumerate(x):
        jebm.images.save_png(tmp_path / f"set/{'train' if i % 3 else 'test'}/{i:02d}.png", image, smallest_side=1)
    for path in files.below(tmp_path):
        objects.put(f"bucket/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    for kind, name in (("npz", "set.npz"), ("folder", "set")):
        here, there = (data.load(f"{kind}:{root}/{name}") for root in (tmp_path, "gs://bucket"))
        assert (here.name, here.fingerprint) == (there.name, there.fingerprint)
        for mine, theirs in ((here.train, there.train), (here.test, there.test)):
            np.testing.assert_array_equal(np.asarray(mine[np.arange(len(mine))]), theirs[np.arange(len(theirs))])
    with pytest.raises(DataError, match=r"gs://bucket/none.npz: no such file"):
        data.load("npz:gs://bucket/none.npz")


def test_weights_from_a_bucket(objects, tmp_path):
    shapes = {"a": (2, 3), "b": (4,)}
    weights = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}
    files.write_arrays(paths.place("gs://bucket/w.npz"), weights)
    read = inception_weights.read_weights(paths.place("gs://bucket/w.npz"), shapes)
    assert {name: array.tolist() for name, array in read.items()} == {n: a.tolist() for n, a in weights.items()}


# --- files ------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(objects):
    path = paths.place("gs://bucket/a/b.txt")
    with files.whole(path) as temporary:
        temporary.write_text("one")
        assert not objects
    with contextlib.suppress(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text("two")
        raise ZeroDivisionError
    assert text_of(objects, "a/b.txt") == "one"
    assert not temporary.exists()


def test_a_store_that_refuses_is_an_error_that_names_the_file(objects, monkeypatch):
    monkeypatch.setattr(bucket.Objects, "put", lambda *_: 1 / 0)
    if bucket._FileSystem.objects is not objects:
        pytest.skip("gcsfs tries again for a minute")
    path = paths.place("gs://bucket/a.npz")
    with pytest.raises(OSError, match="could not be written .ZeroDivisionError") as caught:
        files.write_arrays(path, {"x": np.zeros(1)})
    assert caught.value.filename == "gs://bucket/a.npz"


def test_lines_are_sent_now_and_then_at_a_checkpoint_and_at_the_end(objects, monkeypatch):
    path, clock = paths.place("gs://bucket/metrics.jsonl"), [100.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: clock[0])
    log = MetricsFile(path, 0)
    puts = objects.generations
    log.write({"step": 1, "a": 1.5})
    assert objects.generations == puts
    log.sync()
    log.sync()
    assert objects.generations == puts + 1
    clock[0] += metrics_log.INTERVAL
    log.write({"step": 2, "a": float("nan")})
    assert objects.generations == puts + 2
    log.write({"step": 3})
    log.close()
    assert read_metrics(path) == [{"step": 1, "a": 1.5}, {"step": 2, "a": None}, {"step": 3}]
    objects.put("bucket/metrics.jsonl", objects["bucket/metrics.jsonl"][0] + b"{dam\n")
    with pytest.warns(UserWarning, match="line 4 is damaged"):
        log = MetricsFile(path, 2)
    log.write({"step": 3, "a": 2.0})
    log.close()
    assert read_metrics(path) == [{"step": 1, "a": 1.5}, {"step": 2, "a": None}, {"step": 3, "a": 2.0}]
    assert text_of(objects, "metrics_damaged.jsonl") == "{dam\n"


# --- what a store cannot do -------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_written(objects, toy_experiment, monkeypatch, capsys):
    run = command(toy_experiment, "gs://bucket/run", "training.num_steps=1")
    monkeypatch.setattr(paths, "_installed", lambda package: package != "s3fs")
    for words, part in {
        (*run, "--profile", "1:1"): "traces go to local folders alone",
        (*run, "--set", 'training.writers=["tensorboard"]'): "event files are appended to",
        tuple(command(toy_experiment, "s3://bucket/run")): "s3:// needs s3fs, which is not installed: pip install s3fs",
        tuple(command(toy_experiment, "ftp://bucket/run")): "ftp:// is not supported",
        tuple(command(toy_experiment, "gs:/bucket/run")): "there is no bucket in it",
    }.items():
        assert main(list(words)) == 2
        out, err = capsys.readouterr()
        assert part in err
        assert err.count("\n") == 1
        assert not objects
    assert not list(pathlib.Path().glob("*:"))


def test_only_google_and_local_folders_take_checkpoints():
    from etils import epath

    local = pathlib.Path("run")
    assert paths.require_checkpoints(local) is local
    with pytest.raises(ValueError, match="checkpoints go to local folders and gs:// alone"):
        paths.require_checkpoints(epath.Path("s3://bucket/run"))


def test_a_bucket_that_cannot_be_reached_is_one_line(objects, monkeypatch, capsys):
    from etils import epath

    def exists(self):
        raise RuntimeError("no\ncredentials")

    monkeypatch.setattr(epath.gpath.PosixGPath, "exists", exists)
    assert main(["report", "gs://bucket/run"]) == 2
    assert "'gs://bucket/run' cannot be reached (RuntimeError: no credentials)" in capsys.readouterr().err
