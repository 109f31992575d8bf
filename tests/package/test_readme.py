"""What the README says is true."""

import re

import pytest
from helpers import ROOT

from jebm.commands.main import main

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_notebook_snippet_runs(capsys):
    exec(compile(blocks("python")[0], "README.md", "exec"), {})  # noqa: S102
    mean, shape = capsys.readouterr().out.rsplit("(", 1)
    assert shape.strip(") \n") == "4096, 200"
    # the product's mean is Λ⁻¹ Σ Λ_i μ_i = (24/23, 17/23)
    values = [float(word) for word in re.findall(r"-?\d+\.\d+", mean)]
    assert values == pytest.approx([24 / 23, 17 / 23], abs=0.05)


def test_the_first_two_bash_blocks_are_the_two_commands():
    train, test = blocks("bash")[:2]
    config = re.search(r"jebm train (\S+)", train)
    assert config
    assert (ROOT / config[1]).is_file()
    assert "pytest" in test
    assert all(len(block.strip().splitlines()) == 1 for block in (train, test))


def test_every_command_of_the_table_exists(capsys):
    for name in set(re.findall(r"`jebm (\w+)", README)):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert "example:" in capsys.readouterr().out
