"""Faults of a long run, each in a real process: kills at random moments, a full disk, a data worker that dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import TESTS
from helpers import toy as toy  # the runs of this file are loaded

import jebm
from jebm.config import load_file, override
from jebm.runs.directory import RunDirectory
from jebm.training import train

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


def run(experiment, directory, *sets, prefix=(), **more):
    words = [word for assignment in sets for word in ("--set", assignment)]
    return subprocess.run(
        [*prefix, sys.executable, "-m", "jebm", "train", str(experiment), "--workdir", str(directory), *words],
        env={**ENVIRONMENT, **more}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def lines_of(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and "per_second" not in k} for line in lines]


def bits(directory):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jebm.load(directory).state)]


KILLED = '''
"""A toy that is killed KILL_AFTER seconds after its first step."""

import os, signal, threading, time

from jebm.data import Loader
from helpers.toy import get_config as get_config

batch, read = Loader.batch, []


def killed():
    time.sleep(float(os.environ["KILL_AFTER"]))
    os.kill(os.getpid(), signal.SIGKILL)


def counted(self, step):
    read.append(step)
    if len(read) == 4 and "KILL_AFTER" in os.environ:  # one for the monitors, one ahead: the first step was made
        threading.Thread(target=killed, daemon=True).start()
    return batch(self, step)


Loader.batch = counted
'''


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(toy_experiment, tmp_path):
    killed_toy, moments = tmp_path / "killed.py", random.Random(int(os.environ.get("JEBM_FAULT_SEED", "0")))
    killed_toy.write_text(KILLED)
    sets = ("training.num_steps=1200", "training.checkpoint_every=20")
    kills, stops, longest = 0, {0}, 0.7
    for _ in range(60):
        result = run(killed_toy, tmp_path / "run", *sets, KILL_AFTER=str(moments.uniform(0.0, longest)))
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        kills += 1
        stop = len(lines_of(tmp_path / "run"))
        if stop <= max(stops):  # a slow machine: it died before its next checkpoint
            longest *= 1.2
        stops.add(stop)
        if kills == 20:
            break
    assert kills == 20, f"the run was over after {kills} kills"
    assert len(stops) > 6  # they came at different steps
    assert run(killed_toy, tmp_path / "run", *sets).returncode == 0
    train(override(load_file(toy_experiment), sets), RunDirectory(tmp_path / "whole"), lambda line: None)
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_full_disk_ends_the_run_and_leaves_the_old_checkpoints(toy_experiment, tmp_path):
    directory, config = tmp_path / "run", load_file(toy_experiment)
    train(override(config, ["training.num_steps=6"]), RunDirectory(directory), lambda line: None)
    # no file may grow beyond 100 KiB, as on a full disk; a checkpoint's weights are larger
    limited = ("bash", "-c", 'ulimit -f 100; exec "$@"', "bash")
    full = run(toy_experiment, directory, prefix=limited, JAX_ENABLE_COMPILATION_CACHE="false")  # not torn for others
    assert full.returncode == 2, full.stderr
    # threads of the writer that was cut off may print after it, as the process ends
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("jebm: ")]
    assert line.startswith("jebm: a checkpoint could not be written in ")
    assert line.endswith("those before it are whole. Make room, and the same command resumes")
    assert jebm.load(directory).step == 6
    train(config, RunDirectory(directory), lambda line: None)
    train(config, RunDirectory(tmp_path / "whole"), lambda line: None)
    assert lines_of(directory) == lines_of(tmp_path / "whole")
    assert bits(directory) == bits(tmp_path / "whole")


SIGNALLED = '''
"""A toy that sends itself SIGNAL before its ninth step, or WHEN its configuration is read."""

import os

from jebm.data import Loader
from helpers.toy import get_config as get_config

batch, number = Loader.batch, int(os.environ["SIGNAL"])


def signalled(self, step):
    if step == 8:
        os.kill(os.getpid(), number)
    return batch(self, step)


if os.environ.get("WHEN") == "reading":
    os.kill(os.getpid(), number)
Loader.batch = signalled
'''


@pytest.fixture
def signalled_toy(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/signalled.py").write_text(SIGNALLED)
    return tmp_path / "configs/signalled.py"


def started(*words, **more):
    """A process whose output nobody reads: both of its pipes are closed at once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jebm", *map(str, words)], env={**ENVIRONMENT, **more}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stderr.close()
    return process.wait(timeout=300)


def test_a_training_outlives_its_output(toy_experiment, tmp_path):
    assert started("train", toy_experiment, "--workdir", tmp_path / "run") == 0
    assert jebm.load(tmp_path / "run").step == 12
    assert (tmp_path / "run/report.html").exists()


def test_a_closed_terminal_saves(signalled_toy, tmp_path):
    assert started("train", signalled_toy, "--workdir", tmp_path / "run", SIGNAL=str(int(signal.SIGHUP))) == 0
    assert 8 <= jebm.load(tmp_path / "run").step < 12


def test_a_signal_that_nohup_ignores_stays_ignored(signalled_toy, tmp_path):
    more = {"prefix": ("nohup",), "SIGNAL": str(int(signal.SIGHUP))}
    assert run(signalled_toy, tmp_path / "run", **more).returncode == 0
    assert jebm.load(tmp_path / "run").step == 12


def test_ctrl_c_outside_the_loop_is_one_line(signalled_toy, tmp_path):
    more = {"SIGNAL": str(int(signal.SIGINT)), "WHEN": "reading"}
    result = run(signalled_toy, tmp_path / "run", **more)
    assert (result.returncode, result.stderr) == (130, "jebm: interrupted\n")
    assert not (tmp_path / "run").exists()
    result = subprocess.run(
        [sys.executable, "-m", "jebm", "configs", "--dir", str(signalled_toy.parent)],
        env={**ENVIRONMENT, **more}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "jebm: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_the_start_is_one_line(toy_experiment, tmp_path):
    moments = random.Random(int(os.environ.get("JEBM_FAULT_SEED", "0")))
    for trial in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "jebm", "train", str(toy_experiment), "--workdir", str(tmp_path / f"run{trial}"),
             "--set", "training.num_steps=100000"],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(moments.uniform(0.3, 6.0))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        assert (process.returncode, "saved" in out) in ((130, False), (0, True))


def test_a_gpu_that_is_not_used_is_mentioned():
    script = (
        "from jax._src import hardware_utils; hardware_utils.has_visible_nvidia_gpu = lambda: True\n"
        "from jebm.commands.main import quiet_logs; quiet_logs()\n"
        "import jax; jax.devices()\n"
    )
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "JAX_PLATFORMS"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "GPU" in line]  # others, where libtpu is installed
    assert line.startswith("jebm: warning: An NVIDIA GPU may be present on this machine, but a CUDA-enabled jaxlib is")


WORKERS = """
import pathlib, sys, warnings
import numpy as np
from jebm.data import DataError
from jebm.data.prefetch import prefetched
from helpers.workers import Batches, Deadly

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        numbers = [int(batch[0]) for batch in prefetched(Batches(folder), 2)]
        assert numbers == list(range(40)), numbers
    assert (folder / "died").exists()
    assert ["a data worker died" in str(w.message) for w in caught if "worker" in str(w.message)] == [True]
    try:
        list(prefetched(Deadly(folder), 1))
    except DataError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_data_worker_that_dies_is_replaced(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 data workers died (out of memory?): take fewer data.workers; the same command")
