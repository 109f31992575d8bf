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
import time

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
        time.sleep(2)  # a fast machine makes the last steps before all processes know
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
    assert killed.returncode == 75, killed.stderr
    assert "a process ended with status 137; the same command resumes" in killed.stderr
    assert len(lines_of(directory)) < 12
    again = launch(signalled_toy, directory)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("resuming from step 6") == 1  # said by the first process alone
    assert_same_metrics(lines_of(tmp_path / "alone"), lines_of(directory))


@pytest.mark.slow
def test_two_processes_give_the_same_bits_whatever_happened(signalled_toy, tmp_path):
    assert launch(signalled_toy, tmp_path / "whole").returncode == 0
    for name, process, number, status in (("killed", "1", signal.SIGKILL, 75), ("stopped", "1", signal.SIGTERM, 0)):
        first = launch(signalled_toy, tmp_path / name, process, number)
        assert first.returncode == status, first.stderr
        if number == signal.SIGTERM:
            assert "stopped by signal after step" in first.stdout
        assert launch(signalled_toy, tmp_path / name).returncode == 0
        assert lines_of(tmp_path / name) == lines_of(tmp_path / "whole")


VERBS = textwrap.dedent(
    """
    import json, os, sys
    import helpers.toy
    from jebm import sharding
    from jebm.commands.main import main

    experiment, run, small, out, *verbs = sys.argv[1:]
    written = []

    def watch(event, given):
        writes = event in ("os.mkdir", "os.rename", "os.remove")
        writes = writes or (event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(given[0]).startswith(run) and "checkpoints" not in str(given[0]):
            written.append(str(given[0]))

    started = sharding.initialize()  # once for all verbs
    sharding.initialize = lambda: started
    sys.addaudithook(watch)
    train = ["train", experiment, "--workdir", run, "--set", "training.num_steps=4"]
    words = {
        "train": train,
        "train, evaluate": [*train, "training.evaluate_at_end=true", "evaluation.num_samples=20"],
        "sample": ["sample", run, "--num", "10", "--batch-size", "6", "--out", run + "/drawn.npz"],
        "evaluate": ["evaluate", run, "--metrics", "generation", "--num", "22"],
        "restore": ["restore", run, "--task", "inpaint", "--input", small, "--degrade", "--num-steps", "2",
                    "--out", run + "/restored.npz"],
        "report": ["report", run],
        "wrong": ["sample", run, "--num", "10", "--step", "2", "--out", run + "/none.npz"],
    }
    statuses = [main(words[verb]) for verb in verbs]
    with open(out, "w") as file:
        json.dump([statuses, written], file)
    """
)


def processes(number, devices, script, *words):
    """A script in so many processes of one port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = {"JEBM_COORDINATOR": f"127.0.0.1:{port}", "JEBM_NUM_PROCESSES": str(number)} if number > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *(str(word).format(i) for word in words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment(devices), **several, **({"JEBM_PROCESS_ID": str(i)} if several else {})},
        )
        for i in range(number)
    ]  # fmt: skip


def run_verbs(number, devices, verbs, experiment, run):
    """Statuses, files written and texts of each process."""
    small, out = run.parent / "small.npy", run.parent / "out{}.json"
    np.save(small, np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8))
    started = processes(number, devices, VERBS, experiment, run, small, out, *verbs)
    texts = [process.communicate(timeout=400) for process in started]
    assert [process.returncode for process in started] == [0] * number, texts
    found = [json.loads((run.parent / f"out{i}.json").read_text()) for i in range(number)]
    return *zip(*found, strict=True), texts


def test_the_verbs_of_two_processes_give_the_bits_of_one(toy_experiment, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    statuses, _, _ = run_verbs(1, 4, ("train", "sample", "evaluate", "restore"), toy_experiment, one)
    assert statuses == ([0, 0, 0, 0],)
    two.mkdir()
    shutil.copytree(one / "checkpoints", two / "checkpoints")
    shutil.copy(one / "config.json", two)
    shutil.copy(one / "metrics.jsonl", two)
    statuses, written, said = run_verbs(2, 2, ("sample", "evaluate", "restore", "wrong"), toy_experiment, two)
    assert statuses == ([0, 0, 0, 2], [0, 0, 0, 2])
    assert written[0]
    assert written[1] == []  # only the first process writes, and speaks
    assert [line for line in said[1][0].splitlines() if "[Gloo]" not in line] == []
    assert "jebm: no checkpoint of step 2" in said[0][1]
    assert "jebm: process 0 does this; of 2 the others generate with it, and wait" in said[0][0]
    for name in ("drawn.npz", "restored.npz", "evaluation/*-n22.npz"):
        ((first,), (second,)) = one.glob(name), two.glob(name)
        with np.load(first) as expected, np.load(second) as found:
            assert found["x"].dtype == np.uint8
            np.testing.assert_array_equal(found["x"], expected["x"])
    scores = [{path.name: json.loads(path.read_text())["value"] for path in (where / "evaluation").glob("*.json")}
              for where in (one, two)]  # fmt: skip
    assert scores[0]
    assert scores[0] == scores[1]
    assert not list(two.glob("*.parts"))


@pytest.mark.slow
def test_a_training_of_two_processes_scores_and_reports(toy_experiment, tmp_path):
    run = tmp_path / "run"
    statuses, written, _ = run_verbs(2, 2, ("train, evaluate", "report"), toy_experiment, run)
    assert statuses == ([0, 0], [0, 0])
    assert written[1] == []
    assert list((run / "evaluation").glob("*.json"))

    assert (run / "report.html").exists()


REFUSED = textwrap.dedent(
    """
    import dataclasses, sys
    import helpers.toy
    import jax
    from jebm import sharding
    from jebm.commands.main import main
    from jebm.errors import ConfigError
    from jebm.training import identity, loop

    started = sharding.initialize()  # once for all trainings
    sharding.initialize = lambda: started

    def of_the_second(module, name, changed, words=()):
        kept, second = getattr(module, name), jax.process_index() == 1
        if second:
            setattr(module, name, changed(kept))
        assert main(["train", sys.argv[1], "--workdir", sys.argv[2], *(words if second else ())]) == 2
        setattr(module, name, kept)

    def missing(load):
        def load_source(config, shape):
            raise ConfigError("there are no images")
        return load_source

    of_the_second(loop, "load_source", lambda load: lambda *given: dataclasses.replace(load(*given), fingerprint="f"))
    of_the_second(loop, "load_source", missing)
    of_the_second(identity, "versions", lambda versions: lambda: {**versions(), "jax": "0.0"})
    of_the_second(jax, "local_device_count", lambda count: lambda: 3)
    of_the_second(loop, "ADVICE", lambda same: same, ["--set", "method.step_size=0.2"])
    """
)


def test_processes_that_differ_are_refused_in_one_line_that_names_the_host(toy_experiment, tmp_path):
    started = processes(2, 2, REFUSED, toy_experiment, tmp_path / "run")
    texts = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], texts
    second = f"jebm: process 1 (on {socket.gethostname()})"
    differs = f"{second} differs from process 0 (on {socket.gethostname()})"
    expected = (
        f"{differs}: the fingerprint of the images is f there", f"{second}: there are no images",
        f"{differs}: the versions are jax=0.0 there", f"{differs}: the devices are 3 x cpu there, 2 x cpu here",
        f"{differs}: the configuration has method.step_size=0.2 there, 0.1 here",
    )  # fmt: skip
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith("jebm: ")]
        assert [line.startswith(start) for line, start in zip(lines, expected, strict=True)] == [True] * 5, lines
        assert "Traceback" not in text
    assert not (tmp_path / "run/checkpoints").exists()


UNSERVED = textwrap.dedent(
    """
    import os
    import jax
    from jebm import sharding
    from jebm.errors import ConfigError

    assert sharding.initialize()
    index, called = jax.process_index(), []

    def work(ask):
        for number in range(3):
            try:
                ask({"number": number})
                called.append(number)
            except ConfigError as error:
                assert str(error).startswith("process 2 (on ") and str(error).endswith("): not here"), error
        return 7

    def serve(request):
        if request["number"] == 1 and index == 2:
            raise ConfigError("not here")
        return lambda: called.append(request["number"])

    for _ in range(2):
        called.clear()
        assert sharding.led("work", work, serve) == 7
        assert called == [0, 2]  # none begins what one of them cannot
    assert sharding.gathered_texts("names", f"of {index}") == ["of 0", "of 1", "of 2"]
    """
)


def test_three_processes_begin_only_what_all_can():
    started = processes(3, 1, UNSERVED)
    texts = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], texts


LOST = textwrap.dedent(
    """
    import functools, sys
    import jax
    from jebm.commands.main import main

    # in the place of 100 s
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=6)
    sys.exit(main(["train", sys.argv[1], "--workdir", sys.argv[2], "--set", "training.num_steps=1000000"]))
    """
)


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_whose_peer_is_killed_asks_for_another_start(toy_experiment, tmp_path, killed):
    started = processes(2, 2, LOST, toy_experiment, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert [process.poll() for process in started] == [None, None], started[0].communicate()
        time.sleep(0.05)
    started[killed].kill()
    texts = [process.communicate(timeout=100) for process in started]
    assert started[1 - killed].returncode == 75, texts
    errors = texts[1 - killed][1]
    assert errors.count("jebm: a process of this run was lost, or cannot be reached") == 1
    assert "Traceback" not in errors
    assert "stack trace" not in errors
