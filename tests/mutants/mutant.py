"""What a mutant is."""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        file: of the library, from the root of the checkout.
        old: text that occurs there once.
        new: what stands there instead.
        note: the fault in words.
        tests: files or nodes that should see it, the likeliest first.
    """

    file: str
    old: str
    new: str
    note: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """For tables and ``--only``."""
        return f"{self.file.removeprefix('jebm/').removesuffix('.py')}: {self.note}"


def of(
    file: str, tests: Iterable[str], *changes: tuple[str, str, str] | tuple[str, str, str, tuple[str, ...]]
) -> tuple[Mutant, ...]:
    """Mutants ``(old, new, note)`` of one file; a fourth entry names other tests than those of the file."""
    tests = tuple(tests)
    return tuple(Mutant(file, old, new, note, *(own or [tests])) for old, new, note, *own in changes)


def code(mutant: Mutant, root: pathlib.Path = ROOT) -> str:
    """The file with the fault.

    Raises:
        ValueError: the old text is not there, or more than once.
    """
    text = (root / mutant.file).read_text()
    if (found := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its old text occurs {found} times in {mutant.file}, not once")
    return text.replace(mutant.old, mutant.new)


def selections(mutants: Iterable[Mutant]) -> tuple[str, ...]:
    """Every file or node of tests that one of the mutants names."""
    return tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
