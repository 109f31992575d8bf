"""The wheel, installed elsewhere: it carries the configurations; trains, samples, scores, reports in any folder."""

import os
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

from jebm.config import named

TINY = """data.batch_size=8 method.width=4 method.num_halvings=2 method.num_steps=2 method.generate_steps=2
method.bank_size=32 training.num_steps=2 training.evaluate_at_end=false evaluation.num_samples=20
evaluation.batch_size=20"""
LIFE = f"""
import pathlib, sys
import jebm
from jebm.commands.main import main

assert pathlib.Path(jebm.__file__).is_relative_to(sys.argv[1]), jebm.__file__
for line in (
    "configs",
    "train digits/ebm --workdir r --set {" ".join(TINY.split())}",
    "sample r --num 4 --out s.png",
    "evaluate r --metrics scores",
    "report r",
):
    assert main(line.split()) == 0, line
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git would hand out, without network."""
    pytest.importorskip("setuptools", minversion="77")  # of the test extra
    folder = tmp_path_factory.mktemp("wheel")
    names = ["jebm", "configs", "pyproject.toml", "README.md", "LICENSE"]
    source = folder / "source"
    source.mkdir()
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in names), str(source)], check=True)  # links stay links
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def pip(verb, *arguments):
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def test_the_wheel_carries_the_configurations_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (described,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {f"jebm/configs/{name}.py" for name in named()} <= names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jebm").rglob("*.py")}
    assert sources <= names
    released = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jebm/models").rglob("*.jebm")}
    assert released <= names
    assert "jebm/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "configs", "benchmarks"))]
    for line in ("Author: the jebm authors", "License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Keywords: "):
        assert f"\n{line}" in described
    assert "Home-page" not in described


def test_an_installed_wheel_trains_samples_scores_and_reports_elsewhere(wheel, tmp_path):
    target, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    pip("install", "--target", target, wheel)
    environment = {**os.environ, "PYTHONPATH": str(target), "JEBM_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", LIFE, target], cwd=work, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "digits/ec_vae: Energy-calibrated VAE on the bundled 8x8 digits" in result.stdout
    assert (work / "s.png").is_file()
    assert (work / "r/report.html").is_file()
    assert list((work / "r/evaluation").glob("score_*.json"))
    assert sorted(path.name for path in work.iterdir()) == ["r", "s.png"]


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_configurations_are_importable(wheel, editable, tmp_path):
    """From the wheel, and from a clone installed in place; in an environment that has no other jebm."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    outer = next(path for path in sys.path if path.endswith("site-packages"))
    (inner,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (inner / "outer.pth").write_text(outer + "\n")  # what this environment has
    what = ["-e", wheel.parent / "source"] if editable else [wheel]
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *what], check=True, env=environment)
    code = (
        "from jebm.configs.digits import ebm; from jebm import config; "
        "print(config.load_file('digits/ebm') == ebm.get_config(), config.__file__)"
    )
    result = subprocess.run([python, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    same, file = result.stdout.split()
    assert same == "True"
    assert file.startswith(str(wheel.parent / "source" if editable else tmp_path / "venv"))


def test_the_version_is_that_of_the_package():
    import jebm

    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{jebm.__version__}"' in text
    assert f'version: "{jebm.__version__}"' in (ROOT / "CITATION.cff").read_text()


def test_every_supported_python_is_tested_and_declared():
    text = (ROOT / "pyproject.toml").read_text()
    for version in ("3.11", "3.12", "3.13"):
        assert f'"Programming Language :: Python :: {version}"' in text
        assert f'"{version}"' in (ROOT / ".github/workflows/ci.yml").read_text()
