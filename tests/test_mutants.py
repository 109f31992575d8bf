"""The list of mutants fits the library; a sample of them is seen by its tests."""

import ast

import pytest
from mutants import MUTANTS, ROOT, code, selections
from mutants.run import campaign, table


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


@pytest.mark.slow
def test_a_sample_of_mutants_is_seen():
    """The whole list: ``python -m tests.mutants.run --jobs 8``."""
    found = campaign(MUTANTS[::25])
    assert not found["wrong_controls"]
    assert set(found["counts"]) <= {"killed", "timeout", "survived"}, table(found["mutants"])
    assert found["counts"].get("survived", 0) <= 1, table(found["mutants"])
