"""The training loop: stopped in any way and resumed, a run gives the bits of one that never stopped."""

import dataclasses
import errno
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.runs import bits, checkpoint_steps, command, metrics_of

import jebm
from jebm import sharding
from jebm.commands import report
from jebm.commands.main import main
from jebm.config import Config, load_file, override
from jebm.energy import bind
from jebm.errors import ConfigError
from jebm.methods import ChainConfig, ECVAEConfig, HatEBMConfig
from jebm.methods.ec import vae as ec_vae
from jebm.runs import checkpoints
from jebm.runs.directory import RunDirectory
from jebm.runs.metrics_log import MetricsFile, read_metrics
from jebm.runs.state import fingerprint
from jebm.training import CheckpointNotRead, Checkpoints, NoCheckpoint, identity, train
from jebm.training.lock import locked


def assert_same_run(one, other):
    assert metrics_of(one) == metrics_of(other)
    first, second = jebm.load(one), jebm.load(other)
    assert first.step == second.step
    assert bits(first.state) == bits(second.state)
    pictures = sorted(path.name for path in (one / "samples").iterdir())
    assert pictures == sorted(path.name for path in (other / "samples").iterdir())
    for name in pictures:
        assert (one / "samples" / name).read_bytes() == (other / "samples" / name).read_bytes()


@pytest.fixture(autouse=True)
def no_report_at_the_end(monkeypatch):
    """Of the many trainings here; `finished_run` has one."""
    monkeypatch.setattr(report, "write", lambda directory: None)


@pytest.fixture
def run_copy(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_who_looks_on_ends_nothing(toy_experiment, tmp_path):
    """Called at the beginning and after each grid, with the images; what it raises is said, and changes no bit."""
    seen, said = [], []

    def look(source):
        seen.append(source.name)
        raise RuntimeError("no eyes")

    config = override(load_file(toy_experiment), ["training.num_steps=5", "training.sample_every=2"])
    one, other = (RunDirectory(tmp_path / name) for name in ("one", "other"))
    train(config, one, said.append, on_grid=look)
    assert seen == ["digits"] * 4  # steps 0, 2, 4 and 5
    assert said.count("training goes on, but was not shown: no eyes") == 4
    assert any(line.startswith("steps 1 to 5 in ") and line.endswith(" images/s") for line in said)
    train(config, other, said.append)
    assert metrics_of(one.path) == metrics_of(other.path)


# --- an uninterrupted run --------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(finished_run):
    assert [line["step"] for line in metrics_of(finished_run)] == [2, 4, 6, 8, 10, 12]
    for line in read_metrics(finished_run / "metrics.jsonl"):
        assert {"reconstruction", "kl", "calibration", "dual", "time", "steps_per_second"} <= set(line)
        assert all(isinstance(value, int | float) for value in line.values())
    assert checkpoint_steps(finished_run) == [6, 9, 12]  # the newest three
    assert sorted(path.name for path in (finished_run / "samples").iterdir()) == [
        "step_0000006.png", "step_0000012.png",
    ]  # fmt: skip
    page = (finished_run / "report.html").read_text()  # the whole one, without scores
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Samples", "Reconstructions", "Between latents", "A chain", "Training", "Configuration",
    ]  # fmt: skip
    assert "http-equiv" not in page
    run = jebm.load(finished_run)
    assert (run.step, run.config.training.num_steps) == (12, 12)
    assert {"config_hash", "data_fingerprint", "versions", "fingerprint"} <= set(run.meta)
    assert jebm.load(finished_run, step=9).step == 9
    assert bits(jebm.load(finished_run, step=9).state) != bits(run.state)


# --- stopped from outside: real processes ------------------------------------------------------------------------

INTERRUPTED = textwrap.dedent(
    """
    import os, pathlib, sys, time
    from jebm.commands.main import main
    from jebm.data import Loader

    at, number, checkpoint = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    batch = Loader.batch

    def interrupted(self, step):
        if step == at:
            while not checkpoint.exists():  # written behind the loop's back
                time.sleep(0.01)
            os.kill(os.getpid(), number)
        return batch(self, step)

    Loader.batch = interrupted
    sys.exit(main(sys.argv[4:]))
    """
)


def interrupted(experiment, directory, number):
    """A process that gets a signal when it fetches its eighth batch, which it does before its seventh step."""
    arguments = ["7", str(int(number)), str(directory / "checkpoints/3"), *command(experiment, directory)]
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        capture_output=True, text=True, env=os.environ, timeout=300,
    )  # fmt: skip


def test_killed_and_started_again(tiny_experiment, finished_run, tmp_path, capsys):
    directory = tmp_path / "run"
    result = interrupted(tiny_experiment, directory, signal.SIGKILL)
    assert result.returncode == -signal.SIGKILL
    assert checkpoint_steps(directory) in ([3], [3, 6])
    assert len(metrics_of(directory)) < 6
    assert main(command(tiny_experiment, directory)) == 0
    assert "resuming from step" in capsys.readouterr().out
    assert_same_run(finished_run, directory)


def test_terminated_and_started_again(tiny_experiment, finished_run, tmp_path, capsys):
    directory = tmp_path / "run"
    result = interrupted(tiny_experiment, directory, signal.SIGTERM)
    assert result.returncode == 0, result.stderr
    assert "stopped by signal after step 7; saved" in result.stdout
    assert "Traceback" not in result.stderr
    assert checkpoint_steps(directory)[-1] == 7
    assert [line["step"] for line in metrics_of(directory)] == [2, 4, 6]
    assert main(command(tiny_experiment, directory)) == 0
    assert "resuming from step 7" in capsys.readouterr().out
    assert_same_run(finished_run, directory)


# --- damaged checkpoints -----------------------------------------------------------------------------------------


def data_files(directory, step):
    files = [path for path in (directory / f"checkpoints/{step}/state").rglob("d/*") if path.is_file()]
    assert files
    return files


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bytes(file):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - b for b in content[middle : middle + 4])
    file.write_bytes(content)


DAMAGES = {"truncated": truncate, "deleted": pathlib.Path.unlink, "flipped": flip_bytes}


def largest(files):
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(kind, run_copy):
    DAMAGES[kind](largest(data_files(run_copy, 12)))
    with pytest.warns(UserWarning, match="the checkpoint of step 12 in .* is not whole .*: passed over"):
        run = jebm.load(run_copy)
    assert run.step == 9
    with pytest.raises(NoCheckpoint, match="the checkpoint of step 12 in .* is not whole"):
        jebm.load(run_copy, step=12)


def test_a_checkpoint_without_its_description_is_passed_over(run_copy):
    shutil.rmtree(run_copy / "checkpoints/12/meta")
    with pytest.warns(UserWarning, match="step 12 in .* is not whole"):
        assert jebm.load(run_copy).step == 9


@pytest.mark.filterwarnings("default:the checkpoint of step")
def test_training_goes_on_before_a_damaged_checkpoint(tiny_experiment, finished_run, run_copy, capsys):
    flip_bytes(largest(data_files(run_copy, 12)))
    assert main(command(tiny_experiment, run_copy)) == 0
    out, err = capsys.readouterr()
    assert "resuming from step 9" in out
    assert "jebm: warning: the checkpoint of step 12" in err
    assert_same_run(finished_run, run_copy)
    assert (run_copy / "checkpoints_damaged/12").is_dir()


@pytest.mark.filterwarnings("default:the checkpoint of step")
@pytest.mark.slow
def test_training_starts_again_when_every_checkpoint_is_damaged(tiny_experiment, finished_run, run_copy, capsys):
    for step in (6, 9, 12):
        truncate(largest(data_files(run_copy, step)))
    passed_over = pytest.warns(UserWarning, match="step 6 in .* is not whole")
    with passed_over, pytest.raises(NoCheckpoint, match="no whole checkpoint"):
        jebm.load(run_copy)
    assert main(command(tiny_experiment, run_copy)) == 0
    assert "no checkpoint is whole: starting again from step 0" in capsys.readouterr().out
    assert_same_run(finished_run, run_copy)


def disk(directory):
    """Every file and its bytes, but for the lock, which says who held it last."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "train.lock"]
    return {path.relative_to(directory): path.read_bytes() for path in files}


REASONS = [PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError(), KeyError("zarr4")]


@pytest.mark.parametrize("error", REASONS, ids=lambda error: type(error).__name__)
def test_a_checkpoint_that_cannot_be_read_is_not_torn(tiny_experiment, run_copy, monkeypatch, capsys, error):
    def refuse(*arguments, **named):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
    before = disk(run_copy)
    assert main(command(tiny_experiment, run_copy, "training.num_steps=14")) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"jebm: the checkpoint of step 12 in {run_copy / 'checkpoints'} cannot be read (")
    assert type(error).__name__ in message
    assert message.count("\n") == 1
    assert disk(run_copy) == before
    assert not (run_copy / "checkpoints_damaged").exists()
    with pytest.raises(CheckpointNotRead, match="nothing shows that it is damaged"):
        jebm.load(run_copy)


def test_files_that_cannot_be_compared_prove_nothing(run_copy, monkeypatch):
    truncate(largest(data_files(run_copy, 12)))
    opened = pathlib.Path.open

    def refuse(path, *arguments, **named):
        if "/12/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(CheckpointNotRead, match="PermissionError"):
        jebm.load(run_copy)


def test_a_configuration_of_another_width_is_named(run_copy):
    settings = json.loads((run_copy / "config.json").read_text())
    settings["method"]["energy_head_width"] = 9
    (run_copy / "config.json").write_text(json.dumps(settings))
    differ = "the configuration's shapes differ from those of the checkpoint of step 12 .*energy.* is .*8.*makes it .*9"
    with pytest.raises(CheckpointNotRead, match=differ):
        jebm.load(run_copy)


def test_a_description_of_another_form(tiny_experiment, run_copy, capsys):
    (meta,) = (path for path in (run_copy / "checkpoints/12/meta").rglob("*") if "recoveries" in path.read_text())
    content = json.loads(meta.read_text())
    for recoveries in (5, [7], [{"attempt": "<script>"}]):
        meta.write_text(json.dumps(content | {"recoveries": recoveries}))
        with pytest.warns(UserWarning, match="step 12 in .* is not whole .meta/.* has changed"):
            assert jebm.load(run_copy).step == 9
    (run_copy / "checkpoints/12/files.json").unlink()  # as an earlier version wrote it
    assert main(command(tiny_experiment, run_copy)) == 2
    error = capsys.readouterr().err
    assert "the description (meta) of the checkpoint of step 12 is of another form" in error
    assert error.count("\n") == 1


def test_checkpoints_set_aside_twice_are_both_kept(run_copy):
    shutil.copytree(run_copy / "checkpoints/12", run_copy / "spare")
    for _ in range(3):
        opened = Checkpoints(run_copy / "checkpoints", 3)
        opened.discard_after(9)
        opened.close()
        shutil.copytree(run_copy / "spare", run_copy / "checkpoints/12")
    assert sorted(path.name for path in (run_copy / "checkpoints_damaged").iterdir()) == ["12", "12.1", "12.2"]


def test_the_record_of_a_checkpoint_agrees_with_its_files(run_copy):
    """Orbax may write after the record is made; then every checkpoint would look torn."""
    for step in checkpoint_steps(run_copy):
        folder = run_copy / f"checkpoints/{step}"
        assert {"meta/metadata", "state/_METADATA"} < set(json.loads((folder / "files.json").read_text()))
        assert checkpoints._damage(folder) is None
        flip_bytes(folder / "_CHECKPOINT_METADATA")
        assert checkpoints._damage(folder) == "_CHECKPOINT_METADATA is damaged"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the checkpoint of step")
def test_whatever_file_is_damaged_the_state_is_the_right_one(toy_experiment, tmp_path):
    config = override(load_file(toy_experiment), ["training.num_steps=6"])
    train(config, RunDirectory(tmp_path / "run"), lambda line: None)
    run = tmp_path / "run"
    right = {step: bits(jebm.load(run, step=step).state) for step in (3, 6)}
    files = [path for path in (run / "checkpoints/6").rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        for damage in (*DAMAGES.values(), lambda path: path.write_bytes(b"")):
            content = file.read_bytes()
            damage(file)
            loaded = jebm.load(run)
            assert bits(loaded.state) == right[loaded.step], file
            file.write_bytes(content)


# --- one run, one set of images, one training at a time ------------------------------------------------------------


@pytest.fixture
def npz_run(toy_experiment, tmp_path):
    """A toy's run on images of an npz, and the command that resumes it."""
    np.savez(tmp_path / "images.npz", x=np.arange(64 * 64, dtype=np.uint8).reshape(64, 8, 8, 1))
    start = command(toy_experiment, tmp_path / "run", f"data.source=npz:{tmp_path / 'images.npz'}")
    assert main([*start, "--set", "training.num_steps=3"]) == 0
    return tmp_path / "run", [*start, "--set", "training.num_steps=6"]


def test_changed_images_are_refused_unless_told_otherwise(npz_run, capsys):
    directory, go_on = npz_run
    np.savez(directory.parent / "images.npz", x=np.full((64, 8, 8, 1), 9, np.uint8))
    before, old = disk(directory), jebm.load(directory).meta["data_fingerprint"]
    capsys.readouterr()
    assert main(go_on) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"changed since this run was trained, fingerprint {old} then and " in error
    assert "--allow-changed-data" in error
    assert disk(directory) == before
    assert main([*go_on, "--allow-changed-data"]) == 0
    new = jebm.load(directory).meta["data_fingerprint"]
    assert new != old
    assert f"{new} now" in error
    assert main(go_on) == 0  # from now on these are its images


def test_a_second_training_in_a_directory_is_refused(npz_run, capsys):
    directory, go_on = npz_run
    before = disk(directory)
    with locked(directory / "train.lock"):
        capsys.readouterr()
        assert main(go_on) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jebm: {directory}: another training is running in it (process {os.getpid()} on ")
    assert error.count("\n") == 1
    assert disk(directory) == before
    assert main(go_on) == 0


def test_a_killed_training_frees_its_directory(tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    path = tmp_path / "train.lock"
    with subprocess.Popen([sys.executable, "-uc", hold, path], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another training is running in it"), locked(path):
            pass
        process.kill()
    with locked(path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .* one training at a time"), locked(tmp_path / "train.lock"):
        pass


HOST = {
    "host": "a", "problem": None, "data_fingerprint": "d0", "generator_fingerprint": None, "versions": {"jax": "0.10"},
    "configuration": {"training": {"seed": 0, "num_steps": 5}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"data_fingerprint": "d1"}, "process 2 (on b) differs from process 0 (on a): the fingerprint of the images is "
         "d1 there, d0 here"),
        ({"generator_fingerprint": "g"}, "the frozen generator's is g there, None here"),
        ({"versions": {"jax": "0.11"}}, "the versions are jax=0.11 there, 0.10 here"),
        ({"configuration": {"training": {"seed": 1, "num_steps": 5}}}, "has training.seed=1 there, 0 here"),
        ({"devices": "4 x TPU v5e"}, "the devices are 4 x TPU v5e there, None here"),
        ({"problem": "it is locked"}, "process 2 (on b): it is locked"),
    ],
)  # fmt: skip
def test_processes_that_differ(changes, words):
    hosts = [HOST, HOST | {"host": "c"}, HOST | {"host": "b"} | changes]
    found = identity.disagreement(hosts)
    assert found is None if words is None else words in found
    if words and "problem" not in changes:  # the one that is alone is named, wherever it is
        assert found.startswith("process 2 (on b) differs from process 0 (on a)")
        assert identity.disagreement(hosts[::-1]).startswith("process 0 (on b) differs from process 1 (on c)")


def test_what_a_checkpoint_says_of_its_origin():
    now = HOST | {"generator_fingerprint": "g1", "configuration": {"data": {"source": "digits"}}}
    assert identity.changed({}, now) is None  # converted, or of an earlier version
    assert identity.changed({"data_fingerprint": "d0", "generator_fingerprint": "g1"}, now) is None
    assert "the frozen generator (method.generator) changed since" in identity.changed(
        {"data_fingerprint": "d0", "generator_fingerprint": "g0"}, now
    )
    assert "fingerprint d9 then and d0 now" in identity.changed({"data_fingerprint": "d9"}, now)


def test_the_fingerprint_of_a_frozen_generator(monkeypatch):
    moving = ChainConfig(latent_noise_scale=1e-2)
    refinement = HatEBMConfig(application="refinement", generator="runs/base", chain=moving, test_chain=moving)

    def of(method=refinement, weight=1.0, width=4):
        base = ECVAEConfig(image_size=8, channels=1, encoder_width=width, energy_layers=((4, 1),))
        monkeypatch.setattr(jebm.runs.run, "load", lambda path: types.SimpleNamespace(config=Config(base)))
        monkeypatch.setattr(jebm.runs.run, "generator_of", lambda run: bind(lambda w, z: w * z, np.full(3, weight)))
        config = Config(method)
        source = types.SimpleNamespace(fingerprint="d0")
        return identity.facts(config, source, jebm.runs.run.frozen_generator(config))["generator_fingerprint"]

    assert of() == of()
    assert len({of(), of(weight=1.5), of(width=5)}) == 3
    assert of(HatEBMConfig()) is None
    assert of(dataclasses.replace(refinement, generator="network")) is None  # its weights came with the run's own state


# --- metrics ---------------------------------------------------------------------------------------------------------


BAD_LINES = [
    b"null", b"5", b"[]", b'"step"', b'{"a": 1.0}', b'{"step": "2"}', b'{"step": null}', b'{"step": 2.5}',
    b'{"step": true}', b'{"step": -1}', b'{"step": 2, "a": "text"}', b'{"step": 2, "a": [1]}',
    b'{"step": 2, "a": ' + b"9" * 400 + b"}",
    b'{"step": 2, "attempt": "<script>"}', b'{"step": 2, "event": "recovery", "attempt": "1"}', b"\xff\xfe{",
    b"[" * 100_000, b'{"step": 2, "a"', b'{"step": ' + b"9" * 400 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: repr(bad[:24]))
def test_a_damaged_line_of_metrics_takes_no_other_with_it(bad, tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": %d, "a": 1.5}' % step for step in range(1, 7)]
    path.write_bytes(b"\n".join([*good[:2], bad, *good[2:], b""]))
    with pytest.warns(UserWarning, match=r"metrics.jsonl: line 3 is damaged and left out; the others are kept") as said:
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert len(said) == 1
    with pytest.warns(UserWarning, match="line 3 is damaged"):
        MetricsFile(path, start_step=5).close()
    assert path.read_bytes().splitlines() == good[:5]
    assert (tmp_path / "metrics_damaged.jsonl").read_bytes() == bad + b"\n"
    MetricsFile(path, start_step=5).close()  # said once


def test_a_full_disk_names_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pathlib.Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), file._file.fileno())
    with pytest.raises(OSError, match="No space left on device: '.*metrics.jsonl'"):
        file.write({"step": 1})
    file.close()


def test_a_line_of_metrics_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1.0}\n{"step": 4, "a": 2.0}\n{"step": 6, "a"')
    assert [line["step"] for line in read_metrics(path)] == [2, 4]
    file = MetricsFile(path, start_step=2)
    file.write({"step": 4, "a": float("nan")})
    file.close()
    assert path.read_text() == '{"step": 2, "a": 1.0}\n{"step": 4, "a": null}\n'


def test_the_fingerprint_sees_every_bit():
    state = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int32), "key": jax.random.key(3)}
    before = fingerprint(state).tolist()
    assert len(before) == 3
    swapped = {**state, "a": state["a"][[0, 1, 3, 2, 4, 5]]}
    negative_zero = {**state, "a": np.where(state["a"] == 0, np.float32(-0.0), state["a"])}
    other_key = {**state, "key": jax.random.key(4)}
    for changed, place in ((swapped, 0), (negative_zero, 0), (other_key, 2)):
        after = fingerprint(changed).tolist()
        assert [i for i in range(3) if after[i] != before[i]] == [place]
    for size in (64, 256, 512, 4096):  # a doubling adds the same bit to all entries
        weights = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        assert fingerprint({"a": weights}) != fingerprint({"a": 2 * weights})


# --- resuming with another configuration -------------------------------------------------------------------------


def test_another_configuration_in_the_same_directory_is_refused(tiny_experiment, run_copy, capsys):
    before = (run_copy / "config.json").read_text()
    for assignment in ("method.kl_weight=0.2", "training.seed=1", "data.flip=false"):
        assert main(command(tiny_experiment, run_copy, assignment)) == 2
        err = capsys.readouterr().err
        assert "another configuration" in err
        assert assignment.partition("=")[0] in err
        assert err.count("\n") == 1
    assert main(command(tiny_experiment, run_copy, "training.num_steps=11")) == 2
    assert "training.num_steps=11" in capsys.readouterr().err
    assert (run_copy / "config.json").read_text() == before


def test_more_steps_go_on(tiny_experiment, finished_run, run_copy, capsys):
    assert main(command(tiny_experiment, run_copy, "training.num_steps=14", "training.log_every=1")) == 0
    assert "resuming from step 12" in capsys.readouterr().out
    lines = metrics_of(run_copy)
    assert lines[:6] == metrics_of(finished_run)
    assert [line["step"] for line in lines[6:]] == [13, 14]
    assert jebm.load(run_copy).step == 14


@pytest.mark.slow
def test_a_streamed_set_goes_on_where_it_stopped(tiny_experiment, tmp_path, monkeypatch):
    from PIL import Image

    from jebm.data import image_set

    monkeypatch.setattr(image_set, "DECODE_LIMIT", 0)  # files are read and cropped batch by batch, as a large set's are
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        size = (9 + i % 3, 9 + i % 2)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / "photos" / f"{i:02d}.png")
    settings = (f"data.source=folder:{tmp_path / 'photos'}", "data.crop=random", "training.log_every=1")
    for directory, stops in (("whole", [7]), ("parts", [4, 7])):  # two epochs and a half of three batches
        for stop in stops:
            arguments = command(tiny_experiment, tmp_path / directory, *settings, f"training.num_steps={stop}")
            assert main([*arguments, "--set", "training.sample_every=0"]) == 0
    one, other = jebm.load(tmp_path / "whole"), jebm.load(tmp_path / "parts")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")
    assert bits(one.state) == bits(other.state)


# --- one program, whatever the devices --------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_program_on_one_and_on_two_devices(tiny_experiment, tmp_path, monkeypatch, caplog):
    assert jax.device_count() == 2
    traces = []
    iterate = ec_vae.iterate
    monkeypatch.setattr(ec_vae, "iterate", lambda *arguments: traces.append(1) or iterate(*arguments))
    config = override(load_file(tiny_experiment), ["training.num_steps=4", "training.sample_every=0"])
    logger = logging.getLogger("jax._src.interpreters.pxla")
    for number in (1, 2):
        monkeypatch.setattr(sharding, "make_mesh", functools.partial(MAKE_MESH, number))
        caplog.clear()
        traces.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger.name):
            logger.disabled = False
            logging.getLogger("jax").setLevel(logging.WARNING)
            state = train(config, RunDirectory(tmp_path / f"on{number}"), log=lambda line: None)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {number}
        assert len(traces) == 1
        assert len([r for r in caplog.records if "Compiling jit(step)" in r.getMessage()]) == 1
    one, two = (metrics_of(tmp_path / f"on{number}") for number in (1, 2))
    assert [line["step"] for line in one] == [2, 4] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose([a[name] for name in a], [b[name] for name in a], rtol=1e-3, atol=1e-5)
    # a checkpoint of two devices, read onto one
    restored = jebm.load(tmp_path / "on2").state
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}
    assert bits(restored) == bits(state.method)


MAKE_MESH = sharding.make_mesh


def test_a_batch_that_the_devices_do_not_divide(tiny_experiment, tmp_path):
    config = override(load_file(tiny_experiment), ["data.batch_size=7"])
    with pytest.raises(ConfigError, match="data.batch_size=7 does not divide over 2 devices"):
        train(config, RunDirectory(tmp_path))
