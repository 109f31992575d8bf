"""Notebooks are kept without outputs, read well, and run from the top in a kernel of their own."""

import json
import re

import nbclient
import nbformat
import pytest
from helpers import FAST_TO_COMPILE, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
ALWAYS = {"01_energies_and_chains", "09_outliers", "10_score_a_model"}  # those that take least


def cells(path, kind):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_they_are_numbered():
    assert [int(name[:2]) for name in NAMES] == list(range(1, 12))
    assert set(NAMES) >= ALWAYS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_kept_without_outputs(path):
    content = json.loads(path.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert set(content["metadata"]) == {"kernelspec", "language_info"}  # nothing of the machine that ran it
    assert all(cell["metadata"] == {} for cell in content["cells"])
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_reads_from_a_title_to_what_comes_next(path):
    prose = cells(path, "markdown")
    assert re.match(r"# \w[^\n]+\n\n\w", prose[0])
    assert [text for text in prose[1:] if re.search(r"^# ", text, re.MULTILINE)] == []
    assert re.search(r"^\*\*Next:\*\* .+\.$", prose[-1], re.MULTILINE)
    assert json.loads(path.read_text())["cells"][-1]["cell_type"] == "markdown"
    assert sum(len(text.split()) for text in prose) > 150
    assert all(len(text) < 1600 and "$" not in text for text in prose)  # equations are words, code or Unicode


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_its_links_lead_to_files(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(cells(path, "markdown")))
    assert len(targets) >= 2
    assert [target for target in targets if not (path.parent / target).resolve().is_file()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_uses_what_a_user_has(path):
    code = "\n".join(cells(path, "code"))
    packages = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert packages <= {
        "IPython", "flax", "importlib", "jax", "jebm", "json", "matplotlib", "numpy", "optax", "sklearn", "subprocess",
        "sys", "warnings",
    }  # fmt: skip
    assert re.search(r"\bjebm(\.\w+)*\._", code) is None
    assert all(len(line) <= 120 for line in code.splitlines())


SLOW = [pytest.param(path, id=path.stem, marks=[] if path.stem in ALWAYS else pytest.mark.slow) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", SLOW)
def test_it_runs_without_a_warning(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))  # scores of released models are written there
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", FAST_TO_COMPILE)  # and one device
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=folder, coalesce_streams=True).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    streams = {name: "".join(o.text for o in outputs if o.get("name") == name) for name in ("stdout", "stderr")}
    assert "Warning" not in streams["stderr"]
    assert len(streams["stdout"]) + len(streams["stderr"]) < 6000
    assert "nan" not in re.sub(r"\(NaN or infinity\)", "", streams["stdout"]).lower().split()
    if "jebm.plot." in path.read_text():
        assert any("image/png" in output.get("data", {}) for output in outputs)
