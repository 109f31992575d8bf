"""benchmarks/plans.py: what it has done it does not do again, and what failed stands in its table."""

import importlib.util
import json
import sys

import pytest
from helpers import ROOT


@pytest.fixture
def plans(monkeypatch):
    spec = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks/plans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOPOLOGIES", ("h100:2x8",))
    return module


def test_a_plan_that_is_there_is_not_made_again_and_a_failed_one_is_on_request(plans, monkeypatch, tmp_path, capsys):
    out, asked = tmp_path / "plans.json", []

    def planned(arguments, python, limit):
        asked.append(" ".join(arguments))
        return {"failed": f"not compiled within {limit:.0f} s"}

    monkeypatch.setattr(plans, "planned", planned)

    def run(*arguments):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["plans.py", "--out", str(out), "--match", "denoising_ebm", *arguments])
        plans.main()
        return list(asked)

    first = run("--topologies", "h100:2x8", "--limit", "7")
    # both sets of 64 pixels have one program
    assert [command.split()[2] for command in first] == [
        f"configs/denoising_ebm/{name}.py" for name in ("celeba64", "cifar10")
    ] * 2
    assert run("--topologies", "h100:2x8") == []
    assert run("--topologies", "h100:2x8", "--again") == first
    assert len(json.loads(out.read_text())) == 6
    capsys.readouterr()
    run("--table")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3
    assert all("not compiled within 900 s" in line for line in lines[2:])
    assert len({line.count("|") for line in lines}) == 1


def test_a_command_that_takes_too_long_is_ended(plans, monkeypatch):
    monkeypatch.setattr(plans, "ROOT", ROOT)
    assert plans.planned(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], sys.executable, 1.0) == {
        "failed": "not compiled within 1 s"
    }
    assert plans.planned(["jebm", "plan", "none.py", "--topology", "cpu:1"], sys.executable, 60.0)["failed"].startswith(
        "jebm: "
    )
