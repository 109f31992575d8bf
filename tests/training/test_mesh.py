"""One program on any mesh: eight simulated devices, and two processes that a worker's death brings down."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from helpers import FAST_TO_COMPILE, ROOT

import jebm
from jebm import sharding
from jebm.config import load_file, override
from jebm.runs.directory import RunDirectory
from jebm.training import train

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
    adam = state.network.optimizer[0]
    for weights in (state.network.params["weights"], adam.mu["weights"], adam.nu["weights"]):
        assert weights.shape == (64, 1024) and shards(weights) == {(64, 256)}
        assert len(weights.sharding.device_set) == 8
    assert shards(state.network.params["mean"]) == {(8, 8, 1)}
    assert shards(state.bank.entries["x"]) == {(4, 8, 8, 1)} and shards(state.bank.ages) == {(4,)}
    shutil.copytree(out / "eight", out / "moved")
    for state in (on(8, 4, 6, "eight").method, on(1, 1, 6, "moved").method):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, state)
    print("passed")
    """
)


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} {FAST_TO_COMPILE}"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}


def lines_of(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and "per_second" not in k} for line in lines]


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


# --- slices ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a slice, as far as a mesh is concerned."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"
    client: str = "fake"


def slices(monkeypatch, sizes):
    chips = [Chip(10 * number + i, number) for number, size in enumerate(sizes) for i in range(size)]
    monkeypatch.setattr(jax, "devices", lambda: chips[::-1])


def test_the_data_axis_runs_over_the_slices_and_fsdp_stays_within_one(monkeypatch):
    slices(monkeypatch, [4, 4, 4])
    mesh = sharding.make_mesh(fsdp=2)
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp"), (6, 2))
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
    assert {chip.id for chip in mesh.devices.flat} == {10 * s + i for s in range(3) for i in range(4)}
    for row, of_row in enumerate(mesh.devices):
        assert {chip.slice_index for chip in of_row} == {row // 2}  # neighbours on the slow axis share a slice
    assert sharding.make_mesh().devices.shape == (12, 1)
    assert sharding.make_mesh(4).devices.shape == (4, 1)  # one slice


@pytest.mark.parametrize(("sizes", "asked"), [([4, 4], {"num_devices": 6}), ([4, 2], {}), ([4, 4], {"fsdp": 8})])
def test_slices_that_take_no_mesh_are_refused_in_one_line(monkeypatch, sizes, asked):
    slices(monkeypatch, sizes)
    with pytest.raises(ValueError, match=r"slices of \[.*\] devices take no mesh with an fsdp axis") as error:
        sharding.make_mesh(**asked)
    assert "\n" not in str(error.value)


# --- two processes -----------------------------------------------------------------------------------------------

CHAINS = textwrap.dedent(
    """
    import os, sys, warnings
    import jax, jax.numpy as jnp, numpy as np
    import jebm

    jebm.sharding.initialize()
    warnings.simplefilter("error")
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = jebm.sharding.make_mesh()
    energy = jebm.energy.gaussian(jnp.array([1.0, -2.0]), jnp.array([1.6, 0.7]))
    kernel, found = jebm.langevin(energy, 0.1, 0.6), {}
    for n, kind in ((8, jnp.asarray), (6, np.asarray)):  # 6: four devices do not divide them
        x = {"a": kind(np.linspace(-1.0, 1.0, 2 * n, dtype=np.float32).reshape(n, 2))}
        on_a = jebm.langevin(jebm.energy.bind(lambda energy, x: energy(x["a"]), energy), 0.1, 0.6)
        state, info = jebm.sample_chains(jax.random.key(3), on_a, x, 5, positions_every=2, mesh=mesh)
        leaves = {"last": state.position["a"], "every": info["position"]["a"], "energy": info["energy"]}
        for name, leaf in leaves.items():
            assert leaf.shape[0] == n
            if n == 8:
                assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
            for shard in leaf.addressable_shards:
                index = shard.index[0].indices(n)
                for row, value in zip(range(*index), np.asarray(shard.data)):
                    found[f"{n}/{name}/{row}"] = value
    np.savez(sys.argv[1] + os.environ["JEBM_PROCESS_ID"], **found)

    # each process speaks of the chains on its own devices
    warnings.simplefilter("always")
    with warnings.catch_warnings(record=True) as caught:
        starts = jnp.array([0.1, 0.2, 0.1, 0.2, 0.1, 9.0, 9.0, 0.1])
        jebm.sample_chains(jax.random.key(3), jebm.langevin(lambda x: x**4, 0.1, 1e-4), starts, 12, mesh=mesh)
    said = [str(warning.message)[:30] for warning in caught]
    assert said == ([] if jax.process_index() == 0 else ["2 of 4 chains left the finite "]), said
    """
)


def test_chains_over_two_processes_are_those_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHAINS, str(tmp_path / "chains")],
            env={
                **environment(2), "JEBM_COORDINATOR": f"127.0.0.1:{port}", "JEBM_NUM_PROCESSES": "2",
                "JEBM_PROCESS_ID": str(i),
            },
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    found = {}
    for i in range(2):
        with np.load(tmp_path / f"chains{i}.npz") as file:
            found |= dict(file)
    energy = jebm.energy.gaussian(np.float32([1.0, -2.0]), np.float32([1.6, 0.7]))
    for n in (8, 6):
        x = np.linspace(-1.0, 1.0, 2 * n, dtype=np.float32).reshape(n, 2)
        state, info = jebm.sample_chains(jax.random.key(3), jebm.langevin(energy, 0.1, 0.6), x, 5, positions_every=2)
        for name, expected in (("last", state.position), ("every", info["position"]), ("energy", info["energy"])):
            together = np.stack([found[f"{n}/{name}/{row}"] for row in range(n)])
            np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)


SIGNALLED = '''
"""A toy whose process SIGNALLED_PROCESS sends itself SIGNAL_NUMBER before the ninth step."""

import os, pathlib, time

from jebm.data import Loader
from helpers.toy import get_config as get_config

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
    assert "the same command resumes from the newest checkpoint" in killed.stderr
    assert len(lines_of(directory)) < 12
    again = launch(signalled_toy, directory)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("resuming from step 6") == 1  # said by the first process alone
    assert_same_metrics(lines_of(tmp_path / "alone"), lines_of(directory))


OTHER_IMAGES = '''
"""A toy whose second process has other images."""

import dataclasses, os

from jebm.training import loop
from helpers.toy import get_config as get_config

load_source = loop.load_source


def other(config, method):
    source = load_source(config, method)
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


VERBS = textwrap.dedent(
    """
    import sys
    import helpers.toy
    from jebm.commands.main import main

    experiment, directory, small = sys.argv[1:4]
    sys.exit(main({
        "train": ["train", experiment, "--workdir", directory, "--set", "training.num_steps=4",
                  "training.evaluate_at_end=true", "evaluation.num_samples=20", "evaluation.batch_size=20"],
        "sample": ["sample", directory, "--num", "10", "--batch-size", "4", "--out", directory + "/drawn.npz"],
        "evaluate": ["evaluate", directory, "--metrics", "generation,scores", "--num", "20"],
        "restore": ["restore", directory, "--task", "inpaint", "--input", small, "--degrade", "--num-steps", "2",
                    "--out", directory + "/restored.npz"],
        "report": ["report", directory],
        "wrong": ["sample", directory, "--num", "10", "--step", "2", "--out", directory + "/none.npz"],
    }[sys.argv[4]]))
    """
)


def together(number, *words):
    """A script in so many processes of one port: (status, output, errors) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = {"JEBM_COORDINATOR": f"127.0.0.1:{port}", "JEBM_NUM_PROCESSES": str(number)} if number > 1 else {}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", VERBS, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment(2), **several, **({"JEBM_PROCESS_ID": str(i)} if several else {})},
        )
        for i in range(number)
    ]  # fmt: skip
    return [(process.returncode, *texts) for process in started for texts in [process.communicate(timeout=400)]]


@pytest.mark.slow
def test_every_verb_of_two_processes_is_that_of_one(toy_experiment, tmp_path):
    small = tmp_path / "small.npy"
    np.save(small, np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8))
    one, two = tmp_path / "one", tmp_path / "two"
    for verb in ("train", "sample", "evaluate", "restore", "report"):
        ((status, _, errors),) = together(1, toy_experiment, one, small, verb)
        assert status == 0, errors
        both = together(2, toy_experiment, two, small, verb)
        assert [status for status, _, _ in both] == [0, 0], both
        said = [line for line in both[1][1].splitlines() if "[Gloo]" not in line]
        assert said == []  # the second process says and writes nothing
        if verb != "train":
            assert "process 0 does this on its own devices; the others of 2 wait" in both[0][1]
        if verb == "train":  # what follows starts from the same bits: their sums are ordered by the number of devices
            assert (two / "evaluation").is_dir()
            assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
            for folder in ("checkpoints", "config.json", "metrics.jsonl"):
                shutil.rmtree(two / folder) if (two / folder).is_dir() else (two / folder).unlink()
                copy = shutil.copytree if (one / folder).is_dir() else shutil.copy
                copy(one / folder, two / folder)
    for name in ("drawn.npz", "restored.npz"):
        with np.load(one / name) as first, np.load(two / name) as second:
            assert first["x"].dtype == np.uint8
            np.testing.assert_array_equal(first["x"], second["x"])
    assert not list(two.glob("*.parts"))
    scores = [{path.name: json.loads(path.read_text())["value"] for path in (where / "evaluation").glob("*.json")}
              for where in (one, two)]  # fmt: skip
    assert scores[0]
    assert scores[0] == scores[1]
    assert (two / "report.html").exists()
    wrong = together(2, toy_experiment, two, small, "wrong")
    assert [status for status, _, _ in wrong] == [2, 2]
    assert "jebm: no checkpoint of step 2" in wrong[0][2]
