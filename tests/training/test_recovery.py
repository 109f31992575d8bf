"""Divergence: the rules on planted lines, and runs that recover, with the bits of a run that was never killed."""

import dataclasses
import math
import re

import jax
import numpy as np
import optax
import pytest
from helpers import ROOT

import jebm
from jebm.commands.main import main
from jebm.config import RecoveryConfig, load_file, override
from jebm.data import Loader
from jebm.errors import ConfigError
from jebm.runs.directory import RunDirectory
from jebm.runs.metrics_log import read_metrics
from jebm.training import Diverged, recovery, train

RULES = RecoveryConfig(gap_deviations=10.0, ratio=100.0)


def lines(gaps, **others):
    return [recovery.watched({"energy_gap": gap, "kl": 3.0, **others}) for gap in gaps]


HEALTHY = lines([1.0, 1.2, 0.8, 1.1, 0.9] * 2, chain_displacement=0.5)  # median 1, median deviation 0.1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"energy_gap": 1.9, "chain_displacement": 0.5}, None),
        ({"energy_gap": 2.1, "chain_displacement": 0.5}, "energy gap 2.1 is 1.1 from its median, more than 1"),
        ({"energy_gap": -0.1, "chain_displacement": 0.5}, "energy gap -0.1 is 1.1 from its median, more than 1"),
        ({"energy_gap": 1.0, "chain_displacement": 0.0}, "chain_displacement collapsed: 0, its median was 0.5"),
        ({"energy_gap": 1.0, "chain_displacement": 51.0}, "chain_displacement exploded: 51, its median was 0.5"),
        ({"energy_gap": 1.0, "chain_displacement": 49.0}, None),
        ({"energy_gap": 1.0, "kl": math.inf, "dual": math.nan}, "dual, kl is not finite"),
        ({"update_ratio/energy": 0.31}, "update_ratio/energy 0.31: one step changes more than 0.3 of the network"),
        ({"update_ratio/energy": 0.29}, None),
        ({"kl": 1e9}, None),  # no rule for a family's own terms while they are finite
    ],
)
def test_rules(line, reason):
    assert recovery.diagnose(RULES, HEALTHY, line) == reason


def test_rules_need_enough_lines_and_can_be_turned_off():
    wild = {"energy_gap": 1e9, "chain_displacement": 1e9}
    assert recovery.diagnose(RULES, HEALTHY[1:], wild) is None
    assert recovery.diagnose(RecoveryConfig(gap_deviations=0.0, ratio=0.0), HEALTHY, wild) is None
    old = lines([1e6] * 60) + lines([0.0] * recovery.WINDOW)  # what is older than the window is forgotten
    assert recovery.diagnose(RULES, old, {"energy_gap": 0.0}) is None


def test_a_stuck_gap():
    rules = RecoveryConfig(gap_deviations=0.0, stuck_lines=3)
    assert recovery.diagnose(rules, lines([-1.0, -2.0, -3.0]), {"energy_gap": -4.0}).startswith("stuck gap")
    assert recovery.diagnose(rules, lines([-1.0, -2.0, -1.5]), {"energy_gap": -4.0}) is None
    assert recovery.diagnose(rules, lines([1.0, -2.0, -3.0]), {"energy_gap": -4.0}) is None
    assert recovery.diagnose(rules, lines([-2.0, -3.0]), {"energy_gap": -4.0}) is None


SCALE = recovery.Scale(dimension=64, temperature=1e-5)
SOUND = {
    "energy_gap": 0.3, "energy_data": -0.02, "energy_negative": -0.32, "chain_displacement": 1.5, "kl": 1e9,
    "saturated_pixels": 0.9, "vae_gradient_norm": 3e3, "update_ratio/energy": 1e-4, "energy_loss": 1e13,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"chain_displacement": 11.0}, "displacement"),
        ({"residual_displacement": 11.0}, "displacement"),
        ({"saturated_pixels": 1.0}, "saturated"),
        ({"saturated_pixels": 0.99}, None),
        ({"vae_gradient_norm": 6.3e5}, None),
        ({"vae_gradient_norm": 6.5e5}, "gradient"),
        ({"update_ratio/energy": 0.0}, "frozen"),
        ({"update_ratio/energy": 9e-9}, "frozen"),
        ({"update_ratio/energy": 2e-8}, None),
        ({"energy_data": 9e-11, "energy_negative": -9e-11, "energy_gap": 1.8e-10}, "flat"),
        ({"energy_data": 9e-11, "energy_negative": -2e-10}, None),  # one of the two is enough
    ],
)
def test_absolute_rules(changes, rule):
    line = SOUND | changes
    history = [recovery.watched(line)] * (recovery.ENOUGH - 1)
    found = recovery.senseless(SCALE, history, line)
    assert (found and re.search(r"\(rule: (.*)\)", found.reason)[1]) == rule
    if rule in ("frozen", "flat"):  # what lasts is said when it has lasted, not before
        assert found.lasting
        least = {"frozen": recovery.LASTING, "flat": recovery.ENOUGH}[rule]
        assert recovery.senseless(SCALE, history[: least - 2], line) is None
        assert recovery.senseless(SCALE, [recovery.watched(SOUND), *history][: least - 1], line) is None
    elif rule:
        assert not found.lasting
        assert recovery.senseless(SCALE, [], line) == found


def test_networks_that_do_not_train_are_not_judged():
    tiny = SOUND | {"energy_data": 0.0, "energy_negative": 0.0}
    del tiny["update_ratio/energy"]
    assert recovery.senseless(SCALE, [recovery.watched(tiny)] * 20, tiny).reason.endswith("(rule: flat)")


@pytest.mark.parametrize(
    ("gap", "runaway"),
    [
        (lambda n: 1.1**n, True),
        (lambda n: 1.1**n * (1.3 if n % 2 else 1.0), True),  # noise in each line
        (lambda n: 1.02**n, False),  # 1.1 a block
        (lambda n: -(1.1**n), False),  # a sampler that loses is the stuck gap's
        (lambda n: 40 * 0.9**n, False),
        (lambda n: n - 12.0, False),
        (lambda n: 1.0 if n < 15 else 3.0, False),
    ],
)
def test_a_runaway_gap(gap, runaway):
    history = lines([gap(n) for n in range(recovery.GROWTH_LINES - 1)])
    line = {"energy_gap": gap(recovery.GROWTH_LINES - 1)}
    found = recovery.senseless(SCALE, history, line)
    assert (found is not None and found.reason.startswith("runaway gap")) == runaway
    assert recovery.senseless(SCALE, history[1:], line) is None


def test_a_gap_that_wakes_is_no_jump():
    gaps = [-1e-5 * 1.3**n for n in range(49)]  # by a third a line, to -3
    for n in range(recovery.ENOUGH, 49):
        line = {"energy_gap": gaps[n], "data_gradient_norm": -gaps[n]}
        history = [{"energy_gap": g, "data_gradient_norm": -g} for g in gaps[:n]]
        assert recovery.diagnose(RecoveryConfig(stuck_lines=0), history, line) is None


def test_back_off():
    @dataclasses.dataclass(frozen=True)
    class Chain:
        step_size: float = 0.1
        num_steps: int = 3

    @dataclasses.dataclass(frozen=True)
    class Method:
        energy_learning_rate: float = 8.0
        generator_learning_rate: tuple[tuple[float, int], ...] = ((4.0, 0), (2.0, 100))
        energy_regularization: float = 1.0
        chain: Chain = Chain()
        test_chain: Chain = Chain()
        BACK_OFF = {
            "learning_rate": ("energy_learning_rate", "generator_learning_rate"), "step_size": ("chain.step_size",),
            "energy_regularization": ("energy_regularization",),
        }  # fmt: skip

    rules = RecoveryConfig(learning_rate_factor=0.5, step_size_factor=0.1, energy_regularization=0.25)
    assert recovery.backed_off(Method(), rules, 0) == Method()
    once = Method(4.0, ((2.0, 0), (1.0, 100)), 1.25, Chain(0.1 * 0.1))
    assert recovery.backed_off(Method(), rules, 1) == once
    assert recovery.backed_off(Method(), rules, 2).energy_learning_rate == 2.0
    recovery.check_back_off(Method(), rules)
    for given in ({"step_size_factor": 0.5}, {"energy_regularization": 0.1}):
        with pytest.raises(ConfigError, match=f"training.recovery.{next(iter(given))}=.*: Bare has no such setting"):
            recovery.check_back_off(Bare(), RecoveryConfig(**given))


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_ratio_that_healthy_lines_would_exceed(ratio):
    with pytest.raises(ConfigError, match=f"ratio={ratio} is out of range: it must be 0, for off, or above 1"):
        RecoveryConfig(ratio=ratio)


@dataclasses.dataclass(frozen=True)
class Bare:
    learning_rate: float = 1.0
    BACK_OFF = {"learning_rate": ("learning_rate",)}


# --- runs --------------------------------------------------------------------------------------------------------


def plain(directory):
    kept = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "time" and "per_second" not in k} for line in kept]


def metrics_lines(directory):
    return [line for line in plain(directory) if "event" not in line]


def recoveries(directory):
    return [line for line in plain(directory) if line.get("event") == "recovery"]


def leaves(state):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(state)]


def test_a_bad_batch_is_survived_and_a_kill_after_it_changes_no_bit(toy_experiment, tmp_path, monkeypatch, capsys):
    """The eighth batch of the first order holds NaN: the run goes back to step 6 and takes another order."""
    batch = Loader.batch

    def planted(self, step):
        images = batch(self, step)
        return np.full(images.shape, np.nan, np.float32) if step == 7 and self.seed == 0 else images

    monkeypatch.setattr(Loader, "batch", planted)
    config = load_file(toy_experiment)
    said = []
    train(config, RunDirectory(tmp_path / "whole"), said.append)
    (line,) = (line for line in said if "attempt" in line)
    assert line.endswith("is not finite; attempt 1 of 8 resumes from step 6")
    log = plain(tmp_path / "whole")
    assert [(line["step"], "event" in line) for line in log] == [
        *((step, False) for step in range(1, 7)), (6, True), *((step, False) for step in range(7, 13)),
    ]  # fmt: skip
    (event,) = recoveries(tmp_path / "whole")
    assert {k: event[k] for k in ("attempt", "detected", "restored")} == {"attempt": 1, "detected": 8, "restored": 6}
    assert all(v is not None and math.isfinite(v) for line in metrics_lines(tmp_path / "whole") for v in line.values())
    run = jebm.load(tmp_path / "whole")
    assert [event["detected"] for event in run.meta["recoveries"]] == [8]
    assert len(run.meta["history"]) == 12

    # killed at step 10, past the recovery, and gone on
    def interrupted(self, step):
        if step == 10 and self.seed != 0:
            raise KeyboardInterrupt
        return planted(self, step)

    monkeypatch.setattr(Loader, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, RunDirectory(tmp_path / "cut"), said.append)
    monkeypatch.setattr(Loader, "batch", planted)
    train(config, RunDirectory(tmp_path / "cut"), said.append)
    assert said[-2] == "resuming from step 9"
    assert said[-1].startswith("steps 10 to ")
    assert plain(tmp_path / "cut") == log
    assert leaves(jebm.load(tmp_path / "cut").state) == leaves(run.state)

    assert main(["report", str(tmp_path / "whole")]) == 0
    assert "<h2>Recoveries</h2>" in (tmp_path / "whole/report.html").read_text()


def test_a_learning_rate_a_hundred_times_too_high_is_recovered_from(toy_experiment, tmp_path):
    sane = load_file(toy_experiment)
    rate = 100 * sane.method.learning_rate
    sets = [f"method.learning_rate={rate}", "training.num_steps=30", "training.recovery.learning_rate_factor=0.1"]
    directory = tmp_path / "run"
    train(override(sane, sets), RunDirectory(directory), lambda line: None)
    events = recoveries(directory)
    assert 1 <= len(events) <= 3
    assert [event["detected"] for event in jebm.load(directory).meta["recoveries"]] == [e["detected"] for e in events]
    after = [line["mismatch"] for line in metrics_lines(directory)]
    assert all(map(math.isfinite, after))
    assert after[-1] < 0.8 * after[0]


@pytest.mark.slow
def test_a_real_family_recovers_from_learning_rates_a_hundred_times_too_high(tmp_path):
    config = load_file(ROOT / "configs/digits/ec_vae.py")
    sets = [
        *(f"method.{n}={100 * getattr(config.method, n)}" for n in ("vae_learning_rate", "energy_learning_rate")),
        "training.num_steps=300", "training.log_every=10", "training.checkpoint_every=50", "training.sample_every=0",
        "training.evaluate_at_end=false",
    ]  # fmt: skip
    train(override(config, sets), RunDirectory(tmp_path / "run"), lambda line: None)
    assert 1 <= len(recoveries(tmp_path / "run")) <= 3
    errors = [line["reconstruction"] for line in metrics_lines(tmp_path / "run")]
    assert all(map(math.isfinite, errors))
    assert np.mean(errors[-5:]) < 0.4 * np.mean(errors[:5])


def test_when_attempts_run_out_the_healthy_checkpoint_stays(toy_experiment, tmp_path, monkeypatch, capsys):
    batch = Loader.batch
    nan = lambda self, step: batch(self, step) * (np.float32(np.nan) if step >= 4 else np.uint8(1))  # noqa: E731
    monkeypatch.setattr(Loader, "batch", nan)  # whatever the order of the data
    words = ["train", str(toy_experiment), "--workdir", str(tmp_path / "run"), "--set"]
    assert main([*words, "training.recovery.max_attempts=1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jebm: step 5: ")
    assert "is not finite; 1 of 1 recoveries are used up, and the newest checkpoint (step 3) is healthy" in error
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    lines = metrics_lines(tmp_path / "run")
    assert [line["step"] for line in lines if None in line.values()] == [5]
    assert [(e["attempt"], e["detected"], e["restored"]) for e in recoveries(tmp_path / "run")] == [(1, 5, 3)]
    run = jebm.load(tmp_path / "run")
    assert run.step == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state))


@pytest.mark.parametrize(
    ("setting", "step", "reason"),
    [
        ("method.learning_rate=1e-30", 5, "update_ratio/energy 0 in 5 lines: the network does not train"),
        ("method.step_size=1e-30", 1, None),
    ],
)
def test_a_run_that_is_wrong_from_its_first_step_stops_at_once(toy_experiment, tmp_path, capsys, setting, step, reason):
    words = ["train", str(toy_experiment), "--workdir", str(tmp_path / "run"), "--set", *setting.split()]
    status = main([*words, "--set", "training.checkpoint_every=12"])
    lines = plain(tmp_path / "run")
    if reason is None:  # steps that are too small are no nonsense: it trains
        assert status == 0
        return
    assert status == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"jebm: step {step}: {reason}", error)
    assert "No recovery is tried" in error
    assert [(line["step"], line.get("event")) for line in lines[-2:]] == [(step, None), (step, "diverged")]
    assert lines[-1]["reason"] in error
    assert main([*words, "--set", "training.recovery.absolute=false"]) == 2  # another configuration


def test_a_loss_turned_round_is_seen(toy_experiment, tmp_path, monkeypatch):
    adam = optax.adam
    monkeypatch.setattr(optax, "adam", lambda rate, **more: adam(-rate, **more))
    config = override(load_file(toy_experiment), ["training.num_steps=40", "training.recovery.max_attempts=0"])
    with pytest.raises(Diverged, match="step 2.: runaway gap: .* Look for a sign turned round in the loss"):
        train(config, RunDirectory(tmp_path / "run"), lambda line: None)


def test_a_run_that_may_not_recover_stops_at_its_first_bad_line(toy_experiment, tmp_path, capsys):
    sets = ["--set", "method.learning_rate=1e30", "--set", "training.recovery.max_attempts=0"]
    assert main(["train", str(toy_experiment), "--workdir", str(tmp_path / "run"), *sets]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jebm: step 1: ")
    assert "0 of 0 recoveries are used up, and there is no checkpoint yet. Lower the learning rates" in error
