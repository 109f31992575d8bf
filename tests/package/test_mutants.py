"""The list of mutants fits the library; a sample of them is seen by its tests."""

import ast

import pytest
from mutants import MUTANTS, ROOT, code, selections
from mutants.run import Outcome, campaign, examine, table


def test_every_mutant_is_one_change_that_compiles():
    problems = []
    for mutant in MUTANTS:
        try:
            ast.parse(code(mutant))
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{mutant.name}: {error}")
    assert not problems, "\n".join(problems)
    assert len(MUTANTS) >= 150
    assert len({mutant.name for mutant in MUTANTS}) == len({mutant[:3] for mutant in MUTANTS}) == len(MUTANTS)


def test_the_tests_of_mutants_are_there():
    missing = [test for test in selections(MUTANTS) if not (ROOT / test.partition("::")[0]).is_file()]
    assert not missing


@pytest.mark.parametrize(
    ("outcome", "result", "seen_by"),
    [
        (Outcome(1, 2.0, "1 failed\nFAILED tests/test_a.py::test_b - E\n"), "killed", "tests/test_a.py::test_b"),
        (Outcome(2, 2.0, "ERROR tests/test_a.py - ImportError\n"), "killed", "tests/test_a.py"),
        (Outcome(-11, 2.0, "Fatal Python error"), "killed", ""),
        (Outcome(None, 65.0, ""), "timeout", ""),
        (Outcome(0, 2.0, "3 passed in 2.00s"), "survived", ""),
        (Outcome(5, 2.0, "no tests ran in 0.01s"), "no control", ""),
    ],
)  # fmt: skip
def test_what_a_run_comes_to(outcome, result, seen_by):
    mutant, asked = MUTANTS[0]._replace(tests=("good", "bad")), []
    run = lambda *given: asked.append(given) or outcome  # noqa: E731
    line = examine(mutant, {"good": {"seconds": 1.0, "wrong": ""}, "bad": {"seconds": 1.0, "wrong": "fails"}}, run)
    assert (line["result"], line["seen_by"]) == (result, seen_by)
    assert asked == [(["good"], 65.0, mutant)]
    assert f"{mutant.file:46s}     1" in table([line])


def test_a_mutant_without_its_text_or_its_tests_is_no_success():
    mutant, control = MUTANTS[0]._replace(tests=("bad",)), {"bad": {"seconds": 1.0, "wrong": "fails"}}
    assert examine(mutant, control, pytest.fail)["result"] == "no control"
    assert examine(mutant._replace(old="nowhere"), control, pytest.fail)["result"] == "not applicable"
    assert "seen: 0 of 0" in table([examine(mutant, control, pytest.fail)])


@pytest.mark.slow
def test_a_sample_of_mutants_is_seen():
    """The whole list: ``python -m tests.mutants.run --jobs 8``."""
    found = campaign(MUTANTS[::25])
    assert not found["wrong_controls"]
    assert set(found["counts"]) <= {"killed", "timeout", "survived"}, table(found["mutants"])
    assert found["counts"].get("survived", 0) <= 1, table(found["mutants"])
