"""Writers beside metrics.jsonl: the same numbers, once each, after kills, too."""

import io
import json
import struct
import sys
import types

import numpy as np
import pytest
from helpers.runs import command
from PIL import Image

from jebm.commands.main import main
from jebm.config import load_file, override
from jebm.data import Loader
from jebm.planning import peaks
from jebm.runs.directory import RunDirectory
from jebm.training import train

SETTINGS = ("training.num_steps=6", "training.log_every=1", "training.checkpoint_every=2", "training.sample_every=3",
            "training.num_samples=4")  # fmt: skip


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def killed_once(monkeypatch):
    """The sixth batch of a process is its last moment; then another process goes on."""
    batch = Loader.batch

    def killed(self, step):
        if step == 5:
            raise Killed
        return batch(self, step)

    monkeypatch.setattr(Loader, "batch", killed)
    return lambda: monkeypatch.setattr(Loader, "batch", batch)


def logged(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k not in ("step", "time")} for line in lines}


# --- TensorBoard ------------------------------------------------------------------------------------------------


def shown(folder):
    """What TensorBoard shows of event files: ``{(step, tag): value}``, numbers and pictures.

    A session that starts at a step hides what earlier ones wrote of it and of later ones.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[0] < event.step}
            for value in event.summary.value:
                assert (event.step, value.tag) not in found
                picture = value.HasField("image")
                found[event.step, value.tag] = value.image.encoded_image_string if picture else value.simple_value
    return found


def test_tensorboard_has_the_numbers_and_grids_once_after_a_kill(toy_experiment, tmp_path, killed_once):
    pytest.importorskip("tensorboardX")
    run = tmp_path / "run"
    start = command(toy_experiment, run, *SETTINGS, 'training.writers=["tensorboard"]')
    with pytest.raises(Killed):
        main(start)
    assert max(step for step, _ in shown(run / "tensorboard")) > 2
    killed_once()
    assert main(start) == 0
    events, lines = shown(run / "tensorboard"), logged(run)
    assert sorted(lines) == [1, 2, 3, 4, 5, 6]
    grids = {step: content for (step, tag), content in events.items() if tag == "samples"}
    numbers = {key: value for key, value in events.items() if key[1] != "samples"}
    expected = {(step, name): np.float32(value) for step, line in lines.items() for name, value in line.items()}
    assert numbers == expected
    assert sorted(grids) == [3, 6]
    for step, content in grids.items():
        ours, theirs = (
            np.asarray(Image.open(place).convert("RGB"))
            for place in (run / f"samples/step_{step:07d}.png", io.BytesIO(content))
        )
        times = ours.shape[0] // theirs.shape[0]  # files of small grids are enlarged
        np.testing.assert_array_equal(ours[::times, ::times], theirs)


# --- Weights & Biases ---------------------------------------------------------------------------------------------


class Service:
    """What wandb keeps of a run, as its own rules say: steps only grow."""

    def __init__(self):
        self.runs = {}

    def module(self):
        module = types.ModuleType("wandb")
        module.Image = lambda pixels: ("image", pixels.shape, pixels.tobytes())
        module.init = self.init
        return module

    def init(self, *, id, name, dir, resume, config):
        assert resume == "allow"
        assert config["training"]["writers"] == ("wandb",) or config["training"]["writers"] == ["wandb"]
        history = self.runs.setdefault(id, {})

        def log(content, step):
            if step >= max(history, default=0):
                history.setdefault(step, {}).update(content)

        return types.SimpleNamespace(log=log, finish=lambda: None)


def test_wandb_has_the_numbers_and_grids_once_after_a_kill(toy_experiment, tmp_path, killed_once, monkeypatch):
    service, run = Service(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", service.module())
    start = command(toy_experiment, run, *SETTINGS, 'training.writers=["wandb"]')
    with pytest.raises(Killed):
        main(start)
    killed_once()
    assert main(start) == 0
    ((identity, history),) = service.runs.items()
    assert json.loads((run / "wandb.json").read_text()) == {"id": identity}
    untimed = lambda line: {k: v for k, v in line.items() if "per_second" not in k}  # noqa: E731
    lines = {step: untimed(line) for step, line in logged(run).items()}
    grids = {step: line.pop("samples") for step, line in history.items() if "samples" in line}
    assert {step: untimed(line) for step, line in history.items()} == lines
    assert sorted(grids) == [3, 6]
    assert all(kind == "image" and shape[2] in (1, 3) for kind, shape, _ in grids.values())


def test_a_service_that_refuses_is_one_line(toy_experiment, tmp_path, monkeypatch, capsys):
    module = Service().module()

    def init(**_):
        raise RuntimeError("no API key\nconfigured")

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert main(command(toy_experiment, tmp_path / "run", *SETTINGS, 'training.writers=["wandb"]')) == 2
    assert "training.writers: W&B cannot start (no API key configured)" in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_one_line_before_anything_is_written(
    name, package, toy_experiment, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(command(toy_experiment, tmp_path / "run", f'training.writers=["{name}"]')) == 2
    out, err = capsys.readouterr()
    assert f"training.writers={name} needs {package}, which is not installed: pip install {package}" in err
    assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "run").exists()


# --- the share of the peak in metrics.jsonl -----------------------------------------------------------------------


def test_the_share_of_the_peak_costs_no_second_trace(toy_experiment, tmp_path, monkeypatch):
    from jebm.training import attempt

    traced, make_step = [], attempt.make_step

    def counting(config, method, *arguments):
        update = method.update
        return make_step(config, method._replace(update=lambda *a: traced.append(1) or update(*a)), *arguments)

    monkeypatch.setattr(attempt, "make_step", counting)
    config = override(load_file(toy_experiment), [*SETTINGS])
    train(config, RunDirectory(tmp_path / "run"), lambda line: None, peak=1e9)
    assert traced == [1]
    lines = logged(tmp_path / "run")
    assert not {"mfu", "flops_per_second"} & set(lines[1])
    for step in range(2, 7):
        line = lines[step]
        assert line["mfu"] == pytest.approx(line["flops_per_second"] / 2e9, rel=1e-3, abs=1e-5)
        each = line["flops_per_second"] / line["steps_per_second"]
        assert each == pytest.approx(lines[2]["flops_per_second"] / lines[2]["steps_per_second"], rel=1e-2)


def test_peaks_are_those_of_known_devices():
    device = lambda kind: types.SimpleNamespace(device_kind=kind)  # noqa: E731
    assert peaks.peak(device("TPU v5 lite")) == 197e12
    assert peaks.peak(device("TPU v4")) == 275e12
    assert peaks.peak(device("cpu")) is None
    assert peaks.peak(device("Another GPU")) is None
