"""The examples of the docstrings are true."""

import doctest
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

import jebm

# what an example may use without importing it
NAMES = {"jax": jax, "jnp": jnp, "np": np, "jebm": jebm}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "jebm").rglob("*.py"))
    if ">>>" in path.read_text()
]


def examples(module):
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(importlib.import_module(module), extraglobs=NAMES) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    for test in examples(module):
        test.globs = dict(NAMES)  # as a reader has them, not as the module has them
        told = []
        failed = doctest.DocTestRunner(verbose=False).run(test, out=told.append).failed
        assert not failed, "".join(told)


def test_there_are_many():
    assert sum(len(examples(module)) for module in MODULES) >= 60
    written = sum(len(re.findall(r"Examples:\n +>>>", path.read_text())) for path in (ROOT / "jebm").rglob("*.py"))
    assert sum(len(examples(module)) for module in MODULES) == written  # each that is written is found


def test_a_false_example_is_seen():
    test = doctest.DocTestParser().get_doctest(">>> jnp.ones(2).sum()\nArray(3., dtype=float32)\n", NAMES, "x", "x", 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
