"""Records: what they hold, what they refuse, and that a file is whole or not there."""

import json
import os

import jax
import numpy as np
import pytest

import jebm
from jebm import data
from jebm.evaluation.records import Record, read_all, read_record, run_protocol, write_record
from jebm.files import cache_directory, write_arrays


@pytest.fixture
def protocol():
    source = data.resize_source(data.load("digits"), 12)
    return run_protocol(source, seed=3, step=1200, weights="ema", config_hash="ab12")


def test_the_protocol_says_what_was_measured_and_where(protocol):
    assert protocol["source"] == "digits"
    assert len(protocol["source_fingerprint"]) == 16
    assert protocol["source_steps"] == ["8x8 to 12x12, zero border"]
    assert (protocol["seed"], protocol["step"], protocol["weights"]) == (3, 1200, "ema")
    assert protocol["config_hash"] == "ab12"
    assert protocol["versions"]["jax"] == jax.__version__
    assert protocol["versions"]["jebm"] == jebm.__version__
    assert protocol["device"].startswith("cpu")
    assert protocol["num_devices"] == jax.device_count()


def test_write_and_read(tmp_path, protocol):
    record = Record("frechet_distance", 0.1 + 0.2, 500, {**protocol, "extra": np.float32(0.5)})
    path = write_record(tmp_path / "evaluation", record)
    assert path == tmp_path / "evaluation" / "frechet_distance-ema-step00001200-seed3-n500.json"
    again = read_record(path)
    assert (again.metric, again.value, again.n) == ("frechet_distance", 0.1 + 0.2, 500)
    assert again.protocol == {**protocol, "extra": 0.5}
    assert json.loads(path.read_text())["format"] == 1
    write_record(tmp_path / "evaluation", Record("frechet_distance", 7.0, 500, protocol))
    write_record(tmp_path / "evaluation", Record("auroc_constant", 0.25, 297, {}))
    assert [(r.metric, r.value) for r in read_all(tmp_path / "evaluation")] == [
        ("auroc_constant", 0.25),
        ("frechet_distance", 7.0),
    ]
    assert read_all(tmp_path / "nothing") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_only_finite_numbers_are_recorded(tmp_path, value):
    with pytest.raises(ValueError, match="auroc came out as"):
        Record("auroc", value, 10, {})
    for inner in (value, np.float32(value), [1.0, value], {"deep": value}):
        with pytest.raises(ValueError, match="the protocol of auroc cannot be recorded"):
            write_record(tmp_path, Record("auroc", 0.5, 10, {"interval": inner}))
    assert os.listdir(tmp_path) == []


def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match="n = 0 images"):
        Record("auroc", 0.5, 0, {})
    with pytest.raises(ValueError, match=r"metric '\.\./auroc' cannot name a file"):
        Record("../auroc", 0.5, 3, {})
    with pytest.raises(ValueError, match="a value of type ndarray"):
        write_record(tmp_path, Record("auroc", 0.5, 3, {"scores": np.zeros(3)}))


def test_a_write_that_fails_leaves_the_old_record(tmp_path, monkeypatch):
    path = write_record(tmp_path, Record("auroc", 0.5, 3, {}))

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_record(tmp_path, Record("auroc", 0.75, 3, {}))
    assert os.listdir(tmp_path) == [path.name]
    assert read_record(path).value == 0.5


def test_arrays_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.npz"
    write_arrays(path, {"x": np.arange(3)})
    assert path.stat().st_mode & 0o777 == 0o644

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_arrays(path, {"x": np.arange(4)})
    assert os.listdir(path.parent) == ["x.npz"]
    with np.load(path) as file:
        assert file["x"].tolist() == [0, 1, 2]


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("JEBM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_directory() == tmp_path / "home/.cache/jebm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg/jebm"
    monkeypatch.setenv("JEBM_CACHE", "~/own")
    assert cache_directory() == tmp_path / "home/own"


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[1]", "3", '{"format": 2, "metric": "a", "value": 1, "n": 1, "protocol": {}}',
        '{"format": 1, "metric": "a", "value": NaN, "n": 1, "protocol": {}}',
        '{"format": 1, "metric": "a", "value": 1, "n": 1}',
    ],
)  # fmt: skip
def test_files_that_are_no_records(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="x.json: not a record of jebm"):
        read_record(tmp_path / "x.json")
