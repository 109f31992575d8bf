"""Every command that a docstring or a page prints is one that the command line takes, with keys that there are."""

import ast
import re
import shlex

import pytest
from helpers import ROOT

from jebm.commands.main import VERBS, parse
from jebm.config import load_file, override
from jebm.errors import ConfigError

COMMAND = re.compile(rf"\bjebm ((?:{'|'.join(VERBS)})\b[^`\n]*)")
LAUNCHED = re.compile(r"launch/\w+\.(?:sh|sbatch) [^`\n]*?((?:CONFIG|configs/)[^`\n]*)")
ASSIGNED = re.compile(r"--set \"?[\w.]+=[^\s`]+(?:\s+(?:--set )?\"?[a-z]+\.[\w.]+=[^\s`]+)*")
# words that stand for a user's own
STANDS_FOR = {
    "CONFIG": "configs/digits/ec_vae.py", "DIR": "runs/x", "SOURCE": "digits", "PATH": "x", "N": "3",
    "gs://BUCKET/runs/digits": "x", "FILE": "x.jebm", "NAME": "digits/ec_vae",
    "tfds:NAME": "tfds:cifar10", "key.path=value": "training.num_steps=3", "...": "",
}  # fmt: skip
# a page may name one option of a command: what else the command must have
REST = {"evaluate": "DIR", "restore": "DIR --task inpaint --input a --out b"}


def texts():
    """``(file, text)``, a command's lines joined."""
    for path in sorted([*(ROOT / "configs").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        yield path, ast.get_docstring(ast.parse(path.read_text())) or ""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "results").glob("*.md")]
    others = [ROOT / "README.md", ROOT / "launch/README.md", ROOT / "jebm/models/README.md"]
    for path in sorted([*others, *pages]):
        yield path, re.sub(r"(?<!`)`[^`]+`(?!`)", lambda span: " ".join(span[0].split()), path.read_text())


def joined(text):
    text = re.sub(r"\s*\\\n\s*|\n\s+(?=--)", " ", text)
    return re.sub(r"(\w+)(?:\\\|\w+)+", r"\1", text).replace("[", "").replace("]", "")  # one of several; optional


def commands():
    for path, text in texts():
        for match in [*COMMAND.finditer(joined(text)), *LAUNCHED.finditer(joined(text))]:
            line = match[1] if match.re is COMMAND else f"train {match[1]}"
            line = re.split(r"'(?=[ );.,:]|$)|\)(?=[\s.;:]|,\s|$)|;|\||, |: | \(|  ", line)[0].strip()
            yield str(path.relative_to(ROOT)), line


FOUND = sorted(set(commands()))


def words(line):
    verb, _, rest = line.partition(" ")
    if rest.startswith("--") and verb in REST:
        line = f"{verb} {REST[verb]} {rest}"
    if re.match(r"train \.\.\. ", line):
        line = line.replace("...", "CONFIG", 1)
    return [given for word in shlex.split(line) if (given := STANDS_FOR.get(word, word))]


@pytest.fixture(scope="module")
def configurations():
    """By file; each is loaded once."""
    return {str(path.relative_to(ROOT)): load_file(path) for path in (ROOT / "configs").rglob("*.py")}


@pytest.fixture
def taken(configurations, monkeypatch):
    """What the parser makes of a command, and the configuration of its assignments; nothing runs."""
    monkeypatch.chdir(ROOT)

    def take(line):
        options = parse(words(line))
        if options.verb is VERBS["train"]:
            name = str(options.config)  # of a file, or as `jebm configs` prints it
            override(configurations[name if name.endswith(".py") else f"configs/{name}.py"], options.set)
        return options

    return take


def test_the_printed_commands_are_taken(taken, capsys):
    assert len(FOUND) > 60
    assert {line.split()[0] for _, line in FOUND} == set(VERBS)
    wrong = []
    for file, line in FOUND:
        try:
            taken(line)
        except (SystemExit, ValueError, KeyError) as error:
            wrong.append((file, line, str(error)))
    assert capsys.readouterr().err == ""
    assert wrong == []


def test_the_printed_assignments_fit_their_configuration(configurations):
    """``--set a=1 b=2`` in a configuration's docstring, outside a whole command as well."""
    seen = 0
    for file, config in configurations.items():
        text = joined(ast.get_docstring(ast.parse((ROOT / file).read_text())))
        text = COMMAND.sub("", text)
        for match in ASSIGNED.findall(text):
            given = [word.rstrip(".,):;").strip('"`') for word in match.split() if word != "--set"]
            values = {"DIR": "runs/x", "N": "3"}
            override(config, [f"{k}={values.get(v, v)}" for k, _, v in (word.partition("=") for word in given)])
            seen += 1
    assert seen >= 10


def test_a_false_command_is_seen(taken):
    for line in ("train CONFIG --workdir DIR --set training.nsteps=3", "sample DIR --many 3 --out x", "data inform x"):
        with pytest.raises(ConfigError):
            taken(line)
