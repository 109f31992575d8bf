"""One program on any mesh: eight simulated devices, and two processes that a worker's death brings down."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jebm.config import load_file, override
from jebm.runs import RunDirectory
from jebm.training import train

ROOT = pathlib.Path(__file__).parents[1]

EIGHT = textwrap.dedent(
    """
    import functools, pathlib, shutil, sys
    import jax, numpy as np
    from jebm import sharding
    from jebm.config import load_file, override
    from jebm.runs import RunDirectory
    from jebm.training import train

    experiment, out = sys.argv[1], pathlib.Path(sys.argv[2])
    make_mesh = sharding.make_mesh

    def on(devices, fsdp, num_steps, name):
        sharding.make_mesh = functools.partial(make_mesh, devices)
        sets = [f"training.num_steps={num_steps}", f"training.fsdp={fsdp}"]
        return train(override(load_file(experiment), sets), RunDirectory(out / name), lambda line: None)

    def shards(array):
        return {shard.data.shape for shard in array.addressable_shards}

    one = on(1, 1, 6, "one").method
    state = on(8, 4, 3, "eight").method
    for weights in (state.params["weights"], state.optimizer[0].mu["weights"], state.optimizer[0].nu["weights"]):
        assert weights.shape == (64, 1024) and shards(weights) == {(64, 256)}
        assert len(weights.sharding.device_set) == 8
    assert shards(state.params["mean"]) == {(8, 8, 1)}
    assert shards(state.bank.entries["x"]) == {(4, 8, 8, 1)} and shards(state.bank.ages) == {(4,)}
    shutil.copytree(out / "eight", out / "moved")
    for state in (on(8, 4, 6, "eight").method, on(1, 1, 6, "moved").method):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, state)
    print("passed")
    """
)


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}


def lines_of(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "steps_per_second")} for line in lines]


def assert_same_metrics(one, other):
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        np.testing.assert_allclose(list(first.values()), [second[k] for k in first], rtol=2e-3, atol=1e-4)


def test_one_and_eight_devices_and_a_checkpoint_moved_between_them(toy_experiment, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", EIGHT, str(toy_experiment), str(tmp_path)],
        env=environment(8), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "passed"
    one, eight, moved = (lines_of(tmp_path / name) for name in ("one", "eight", "moved"))
    assert len(one) == 6
    assert_same_metrics(one, eight)
    assert_same_metrics(one, moved)


# --- two processes -----------------------------------------------------------------------------------------------

SIGNALLED = '''
"""A toy whose process SIGNALLED_PROCESS sends itself SIGNAL_NUMBER before the ninth step."""

import os, pathlib, time

from jebm.data import Loader
from toy_family import get_config as get_config

batch = Loader.batch


def signalled(self, step):
    if step == 8 and os.environ.get("SIGNALLED_PROCESS") == os.environ["JEBM_PROCESS_ID"]:
        while not pathlib.Path(os.environ["WAIT_FOR"]).exists():  # checkpoints are written behind the loop's back
            time.sleep(0.01)
        os.kill(os.getpid(), int(os.environ["SIGNAL_NUMBER"]))
    return batch(self, step)


Loader.batch = signalled
'''


def launch(experiment, directory, process="", number=0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = {
        "JEBM_PYTHON": sys.executable, "JEBM_COORDINATOR": f"127.0.0.1:{port}", "SIGNALLED_PROCESS": process,
        "SIGNAL_NUMBER": str(int(number)), "WAIT_FOR": str(directory / "checkpoints/6"),
    }  # fmt: skip
    return subprocess.run(
        [str(ROOT / "launch/local.sh"), "2", str(experiment), "--workdir", str(directory)],
        env={**environment(2), **more}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.fixture
def signalled_toy(tmp_path):
    path = tmp_path / "signalled.py"
    path.write_text(SIGNALLED)
    return path


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(toy_experiment, signalled_toy, tmp_path):
    train(override(load_file(toy_experiment), []), RunDirectory(tmp_path / "alone"), lambda line: None)
    directory = tmp_path / "run"
    killed = launch(signalled_toy, directory, "1", signal.SIGKILL)
    assert killed.returncode == 1, killed.stderr
    assert "the same command goes on from the newest checkpoint" in killed.stderr
    assert len(lines_of(directory)) < 12
    again = launch(signalled_toy, directory)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("going on from step 6") == 1  # said by the first process alone
    assert_same_metrics(lines_of(tmp_path / "alone"), lines_of(directory))


OTHER_IMAGES = '''
"""A toy whose second process has other images."""

import dataclasses, os

from jebm.training import loop
from toy_family import get_config as get_config

load_source = loop.load_source


def other(config):
    source = load_source(config)
    second = os.environ["JEBM_PROCESS_ID"] == "1"
    return dataclasses.replace(source, fingerprint=source.fingerprint[::-1]) if second else source


loop.load_source = other
'''


@pytest.mark.slow
def test_two_processes_with_different_images_are_refused(tmp_path):
    (tmp_path / "other.py").write_text(OTHER_IMAGES)
    result = launch(tmp_path / "other.py", tmp_path / "run")
    assert result.returncode == 2, result.stderr
    assert "jebm: process 1 (on " in result.stderr
    assert "differs from process 0 (on " in result.stderr
    assert "the fingerprint of the images is " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_two_processes_give_the_same_bits_whatever_happened(signalled_toy, tmp_path):
    assert launch(signalled_toy, tmp_path / "whole").returncode == 0
    for name, process, number, status in (("killed", "1", signal.SIGKILL, 1), ("stopped", "1", signal.SIGTERM, 0)):
        first = launch(signalled_toy, tmp_path / name, process, number)
        assert first.returncode == status, first.stderr
        if number == signal.SIGTERM:
            assert "stopped by signal after step" in first.stdout
        assert launch(signalled_toy, tmp_path / name).returncode == 0
        assert lines_of(tmp_path / name) == lines_of(tmp_path / "whole")
