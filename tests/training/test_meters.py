"""What a run says of itself: first lines, speed, memory, traces."""

import io
import json
import re
import time
import types

import jax
import jax.numpy as jnp
import pytest
from helpers.runs import command
from tqdm import tqdm

from jebm import sharding
from jebm.commands.main import main
from jebm.config import Config, DataConfig, TrainingConfig
from jebm.errors import ConfigError
from jebm.methods import HatAutoencoderConfig
from jebm.training import meters, output


class Clock:
    """A clock that only goes when it is told to."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def test_speed_is_that_of_the_window_without_compilation_and_pauses():
    clock = Clock()
    speed = meters.Speed(8, clock)
    assert speed.read(1) == {}
    clock.time += 60.0  # compilation
    speed.started(11)
    assert speed.read(11) == {}
    clock.time += 2.0
    speed.started(12)
    with speed.paused():
        clock.time += 30.0
    clock.time += 2.0
    assert speed.read(15) == {"steps_per_second": 1.0, "images_per_second": 8.0}
    clock.time += 0.5
    assert speed.read(20) == {"steps_per_second": 10.0, "images_per_second": 80.0}


def test_the_last_line_is_of_all_windows():
    clock = Clock()
    speed = meters.Speed(8, clock)
    clock.time += 60.0  # compilation
    speed.started(11)
    assert speed.last_line(10, 11) == "steps 11 to 11 in 1 min 0 s"
    for step, seconds in ((15, 2.0), (25, 3.0)):
        with speed.paused():
            clock.time += 30.0
        clock.time += seconds
        speed.read(step)
    # 14 steps of 8 images in 5 seconds, and 60 + 2 * 30 more
    assert speed.last_line(10, 25) == "steps 11 to 25 in 2 min 5 s (compilation 1 min 0 s), 22 images/s"


def test_only_what_is_there_is_finished():
    class Result:
        ready = False

        def is_ready(self):
            return self.ready

    results, finished = [Result() for _ in range(3)], meters.Finished()
    assert finished.newest() == 0
    for step, result in enumerate(results, 5):
        finished.started(step, result)
    assert finished.newest() == 0
    results[1].ready = True  # not without the one before
    assert finished.newest() == 0
    results[0].ready = True
    assert finished.newest() == 6
    results[2].ready = True
    assert finished.newest() == 7
    finished.started(8, jax.block_until_ready(jnp.zeros(())))
    assert finished.newest() == 8


def test_a_bar_ticks_while_nothing_moves_it():
    stream = io.StringIO()
    with tqdm(total=4, file=stream, desc="train", mininterval=0.0) as bar:
        with output.ticking(bar, "compiling"):
            time.sleep(1.3)
        assert bar.desc == "train: "
        assert bar.n == 0
    shown = stream.getvalue()
    assert "compiling, 0 s" in shown
    assert "compiling, 1 s" in shown
    with tqdm(disable=True) as bar, output.ticking(bar, "compiling"):  # of a process that shows none
        pass


def test_the_first_lines_name_devices_rows_and_bytes():
    mesh = sharding.make_mesh(fsdp=2)
    config = Config(HatAutoencoderConfig(), DataConfig(batch_size=6), TrainingConfig())
    split = jax.ShapeDtypeStruct((250, 2), jnp.float32, sharding=sharding.batch_sharding(mesh))
    copied = jax.ShapeDtypeStruct((3000,), jnp.uint8, sharding=sharding.replicated(mesh))
    first, second = meters.first_lines(config, mesh, {"a": split, "b": copied})[:2]
    assert first == "devices: 2 x cpu (cpu) on 1 host; mesh data 1 x fsdp 2"
    assert second == "batch: 6 images, 3 a device; state: 4 kB a device, 5 kB in all"


def test_an_accelerator_that_is_not_used_is_named(monkeypatch):
    there = lambda path: path == "/dev/nvidia0"  # noqa: E731
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert re.match(r"WARNING: an NVIDIA GPU is present and NOT used, .* pip install", meters._unused("cpu", there))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS=cpu says so" in meters._unused("cpu", there)
    assert meters._unused("gpu", there) is None
    assert meters._unused("cpu", lambda path: False) is None


def test_memory_is_the_most_of_the_devices_that_tell(monkeypatch):
    device = lambda **stats: types.SimpleNamespace(memory_stats=lambda: stats or None)  # noqa: E731
    monkeypatch.setattr(jax, "local_devices", lambda: [device()])
    assert meters.device_memory() == {}
    two = [device(bytes_in_use=3, peak_bytes_in_use=9), device(bytes_in_use=5, peak_bytes_in_use=7)]
    monkeypatch.setattr(jax, "local_devices", lambda: two)
    assert meters.device_memory() == {"device_bytes": 5, "device_bytes_peak": 9}


def test_a_run_that_is_profiled_says_what_it_runs_on(toy_experiment, tmp_path, capsys):
    assert main([*command(toy_experiment, tmp_path / "run", "training.num_steps=4"), "--profile", "2:3"]) == 0
    said = capsys.readouterr().out
    assert "jebm: devices: 2 x cpu (cpu) on 1 host; mesh data 2 x fsdp 1\n" in said
    assert re.search(r"jebm: batch: 16 images, 8 a device; state: .* a device, .* in all\n", said)
    assert f"jebm: profile: {tmp_path / 'run/profile'}\n" in said
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert "images_per_second" not in lines[0]  # the step that compiles
    for line in lines[1:]:
        assert line["images_per_second"] == pytest.approx(16 * line["steps_per_second"], rel=1e-3, abs=0.02)


@pytest.mark.parametrize(
    ("given", "words"), [("5", "write the first"), ("a:b", "write"), ("3:2", "first comes first"), ("0:2", "from 1")]
)
def test_steps_that_are_none(given, words, toy_experiment, tmp_path, capsys):
    assert main([*command(toy_experiment, tmp_path / "run"), "--profile", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("steps", [(1, 10), (21, 30)])
def test_steps_that_will_not_be_trained_are_refused(steps):
    meters.check_profile(None, 10, 20)
    meters.check_profile((9, 11), 10, 20)
    meters.check_profile((20, 25), 10, 20)
    with pytest.raises(ConfigError, match="this training makes the steps 11 to 20"):
        meters.check_profile(steps, 10, 20)
