"""What a wrong input shows in a notebook: the cell, the user's own frames, the last frame, one line."""

import subprocess
import sys

import pytest

pytest.importorskip("IPython", reason="IPython is not installed")

CELLS = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
shell.run_cell("import jax, jax.numpy as jnp, jebm")
shell.run_cell("def wrong(x): return jnp.square(x)")
shell.run_cell("def broken(x): return jnp.sum(x @ jnp.ones(7))")
run = "jebm.sample_chains(jax.random.key(0), jebm.langevin(%s), jnp.zeros((3, 2)), 4)"
for cell in (
    run % "wrong", run % "broken",
    "jebm.sample_chains(jax.random.key(0), jebm.langevin(wrong), jnp.zeros((3, 2)), 1e3)",
    "jax.config.update('jax_traceback_filtering', 'off'); " + run % "wrong",
):
    print("=====")
    shell.run_cell(cell)
"""


def test_a_notebook_shows_few_frames():
    result = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, check=True)
    shape, broken, count, off = (part.strip().splitlines() for part in result.stdout.split("=====\n")[1:])
    assert shape[-1].startswith("ValueError: an energy must return one scalar for one example, got shape (2,)")
    assert count[-1] == "ValueError: num_steps must be an int of at least 0, got 1000.0"
    for lines in (shape, count):
        frames = [line for line in lines if line.startswith(("File ", "Cell "))]
        assert len(frames) == 2, "\n".join(lines)  # the cell, and the last, which IPython always shows
        assert any("skipping hidden" in line for line in lines)
        assert len(lines) < 35
    assert any("broken(x)" in line for line in broken)  # the user's own frame stays
    assert len([line for line in broken if "/jebm/" in line and line.startswith("File ")]) == 0
    assert len([line for line in off if line.startswith("File ")]) > 6
