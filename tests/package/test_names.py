"""What a notebook completes and explains: every public name is found, and the package's help is a map of them."""

import ast
import pathlib
import pydoc

import jebm

FACE = pathlib.Path(jebm.__file__)


def test_every_name_is_there_and_completes():
    assert set(dir(jebm)) == set(jebm.__all__)
    for name in jebm.__all__:
        assert getattr(jebm, name) is not None


def test_type_checkers_see_every_name():
    typed = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(FACE.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jebm")
        for alias in node.names
    }
    assert typed == set(jebm.__all__) - {"__version__"}


def test_help_is_a_map_of_every_name():
    text = pydoc.plain(pydoc.render_doc(jebm))
    described = text[: text.index("PACKAGE CONTENTS")]
    words = set(described.replace(",", " ").split())
    assert set(jebm.__all__) - {"__version__"} <= words
