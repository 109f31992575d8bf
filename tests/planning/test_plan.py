"""`jebm plan`: what it prints of a small family on simulated devices, and its refusals."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import pytest
from helpers import FAST_TO_COMPILE, ROOT

from jebm.commands.main import main
from jebm.commands.plan import advice
from jebm.config import load_file, override
from jebm.planning import hlo, plan, programs, topology
from jebm.planning.topology import CHIPS, Topology


def command(*arguments):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "jebm", "plan", *arguments],
        env={**os.environ, "XLA_FLAGS": FAST_TO_COMPILE, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def test_a_plan_for_eight_devices(toy_experiment):
    result = command(str(toy_experiment), "--topology", "cpu:8", "--json", "--set", "training.fsdp=4")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["devices"], found["hosts"], found["mesh"]) == (8, 1, {"data": 2, "fsdp": 4})
    assert found["rows"] == found["batch_size"] // 8
    assert found["batch"] == found["rows"] * 64
    assert found["fits"] is True
    step = found["programs"]["training step"]
    assert step["collectives_inside_loops"] == {}
    assert step["collectives_outside_loops"]["all-gather"]["number"] > 0  # the weights
    # weights, their average and Adam's two moments lie in four parts; they are most of the state
    parts = 4 * 64 * 1024 * 4 // 4
    assert parts < found["state"] < 1.1 * parts
    assert step["peak"] >= found["state"]
    assert step["seconds"] is None
    assert "compiling the training step for cpu:8" in result.stderr


def test_what_does_not_fit_has_status_1_and_says_what_to_try(toy_experiment, monkeypatch, capsys):
    config = load_file(toy_experiment)
    here = topology("cpu:1")
    small = plan(config, here._replace(memory=1000))
    assert small.too_large == list(small.programs)
    monkeypatch.setattr("jebm.planning.plan", lambda *_, **__: small)
    assert main(["plan", str(toy_experiment), "--topology", "cpu:1"]) == 1
    printed = capsys.readouterr()
    assert "peak memory a device" in printed.out
    assert printed.err.count("\n") == 1
    assert "training step" in printed.err
    assert "a larger slice" in printed.err


def test_the_plan_s_step_does_what_its_config_says(toy_experiment):
    config = load_file(toy_experiment)
    found = plan(config, topology("cpu:1"))
    assert found.runs["training step"] == config.training.num_steps
    # five steps of chains through 64 x 1024 weights, a gradient being two products and more
    chains = 2 * config.data.batch_size * 64 * 1024 * 2 * 5
    assert chains < found.programs["training step"].flops < 4 * chains


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "tpu"], "there are cpu:8"),
        (["--topology", "v5e"], "give a kind and a shape"),
        (["--topology", "cpu:0"], "give a kind and a shape"),
        (["--topology", "cpu:4x4"], "one row of one slice"),
        (["--topology", "cpu:2", "--slices", "2"], "one row of one slice"),
        (["--topology", "cpu:77"], "run it in a fresh one"),
        (["--topology", "h100:16"], "nodes x GPUs"),
        (["--topology", "h100:2x8", "--slices", "2"], "nodes x GPUs"),
        (["--topology", "h100:2x0"], "give a kind and a shape"),
        (["--topology", "b300:2x8"], "there are cpu:8"),
        (["--topology", "cpu:1", "--set", "training.sample_every=0", "--only", "grid"], "this run draws none"),
        (
            ["--topology", "cpu:1", "--set", "data.batch_size=31", "--set", "training.microbatches=2"],
            "data.batch_size=31 does not divide",
        ),
        (["--topology", "cpu:1", "--set", "training.fsdp=3"], "training.fsdp=3"),
    ],
)
def test_refusals_are_one_line(toy_experiment, capsys, arguments, said):
    jax.devices()  # a process that has its devices
    assert main(["plan", str(toy_experiment), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("topology", "module", "said"),
    [
        ("v5e:4x4", "libtpu", "pip install libtpu"),
        ("h100:2x8", "jax_cuda12_plugin", "pip install 'jax[cuda12]'"),
    ],
)
def test_without_a_compiler_one_line_says_how_to_get_it(toy_experiment, capsys, monkeypatch, topology, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.replace("12", "13"), None)
    assert main(["plan", str(toy_experiment), "--topology", topology]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
def test_a_plan_for_tpus_has_no_communication_in_chains_and_a_time(toy_experiment):
    result = command(str(toy_experiment), "--topology", "v5e:2x4", "--json", "--set", "training.fsdp=4")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["devices"], found["hosts"], found["memory"]) == (8, 2, 16 << 30)
    assert all(program["collectives_inside_loops"] == {} for program in found["programs"].values())
    assert 0 < found["programs"]["training step"]["seconds"] < 1
    assert found["images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
def test_a_plan_for_two_slices(toy_experiment):
    sets = ("--set", "training.fsdp=4", "--slices", "2", "--json")
    result = command(str(toy_experiment), "--topology", "v5e:2x2", *sets)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["devices"], found["mesh"]) == (8, {"data": 2, "fsdp": 4})
    assert all(program["collectives_inside_loops"] == {} for program in found["programs"].values())
    too_wide = command(str(toy_experiment), "--topology", "v5e:2x2", *sets, "--set", "training.fsdp=8")
    assert too_wide.returncode == 2
    assert "slices of [4, 4] devices take no mesh with an fsdp axis of 8" in too_wide.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs a plugin for GPUs: pip install 'jax[cuda12]'"
)
def test_a_plan_for_two_nodes_of_gpus_is_a_roofline(toy_experiment):
    result = command(str(toy_experiment), "--topology", "h100:2x8", "--json", "--only", "step")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["devices"], found["hosts"]) == (16, 2)
    assert list(found["programs"]) == ["training step"]
    step = found["programs"]["training step"]
    assert step["collectives_inside_loops"] == {}
    assert step["flops"] > 0
    assert step["seconds"] == max(step["bounds"].values())
    assert found["said_by"]["times"].startswith("estimate: a roofline")


def test_a_roofline_is_the_longest_of_its_parts(toy_experiment):
    chip = CHIPS["h100"]
    here = topology("cpu:1")._replace(chip=chip, memory=chip.memory)
    config = load_file(toy_experiment)
    step = plan(config, here, only="training step").programs["training step"]
    assert set(step.bounds) == {"products", "memory", "collectives", "kernels"}
    assert step.bounds["products"] == pytest.approx(step.flops / chip.peak["default"])
    assert step.bounds["memory"] == pytest.approx(step.moved / chip.bandwidth)
    assert step.seconds == max(step.bounds.values())
    exact = override(config, ["training.matmul_precision=highest"])
    slower = plan(exact, here, only="training step").programs["training step"]
    assert slower.bounds["products"] == pytest.approx(step.flops / chip.peak["float32"])


@pytest.mark.parametrize(("nodes", "speed"), [(1, "link"), (2, "network")])
def test_collectives_go_over_the_slowest_way(nodes, speed):
    text = """HloModule f
ENTRY %main (x: f32[250]) -> f32[250] {
  %x = f32[250]{0} parameter(0)
  ROOT %all = f32[250]{0} all-reduce(%x), channel_id=1, to_apply=%add
}"""
    chip = CHIPS["h100"]
    devices = [types.SimpleNamespace(process_index=i % nodes) for i in range(4)]
    there = Topology("h100", devices, chip.memory, chip)
    assert programs._bounds(hlo.executed(text), there)["collectives"] == 1000 / getattr(chip, speed)


def test_the_advice_is_what_the_method_takes(toy_experiment):
    config = load_file(toy_experiment)
    small = plan(config, topology("cpu:1")._replace(memory=1000), only="training step")
    assert ("--set training.microbatches=2" in advice(config, small)) == (not small.whole_batch)
    other = dataclasses.replace(small, whole_batch=not small.whole_batch)
    assert ("--set training.microbatches=2" in advice(config, other)) == small.whole_batch
