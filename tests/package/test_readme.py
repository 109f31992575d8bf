"""What the README says is true."""

import re

import pytest
from helpers import ROOT

from jebm.commands.main import VERBS, main

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_notebook_snippet_is_python():
    """Its names and shapes: `tests/runs/test_packed.py` loads that model."""
    (snippet,) = blocks("python")
    compile(snippet, "README.md", "exec")
    assert 3 <= len(snippet.splitlines()) <= 4


def test_its_first_screen_has_a_picture():
    shown = re.search(r"^!\[[^]]+\]\(([^)]+)\)$", README[:1500], re.MULTILINE)
    assert shown
    assert 0 < (ROOT / shown[1]).stat().st_size < 200_000


def test_the_first_two_bash_blocks_are_the_two_commands():
    train, test = blocks("bash")[:2]
    config = re.search(r"jebm train (\S+)", train)
    assert config
    assert (ROOT / config[1]).is_file()
    assert "pytest" in test
    assert all(len(block.strip().splitlines()) == 1 for block in (train, test))


def test_every_command_of_the_table_exists(capsys):
    names = set(re.findall(r"^\| `jebm (\w+)", (ROOT / "docs/how-to/command-line.md").read_text(), re.MULTILINE))
    assert names == set(VERBS)
    for name in names:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert "example:" in capsys.readouterr().out
