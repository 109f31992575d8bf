"""Runs mutants: each in a copy of the tree, by the tests that should see it, as CI runs them.

    python -m tests.mutants.run --list                         # what there is
    python -m tests.mutants.run --only ec_vae                  # those whose name matches
    python -m tests.mutants.run --jobs 14 --json mutants.json  # all, on 14 cores

Every file or node of tests runs once on the tree as it is, the control, and has to pass. A mutant is *killed* when one
of its tests fails, a *timeout* when they take more than five times as long as their controls (and a minute), and else
it *survives*. *Not applicable* means that the old text is not in the file: the list has to follow the library. The
status is 0 if every mutant could be run; survivors do not change it.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from . import MUTANTS, ROOT, Mutant, code, selections

LONGEST = 1800  # seconds of a control


class Outcome(NamedTuple):
    """What a run of pytest came to."""

    status: int | None  # None: past its limit
    seconds: float
    output: str

    @property
    def seen_by(self) -> str:
        """The first test that failed, or could not be collected."""
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def passed(self) -> int:
        """How many tests did."""
        found = re.search(r"^.*?(\d+) passed", self.output, re.MULTILINE)
        return int(found[1]) if found else 0


class Copies:
    """Copies of the tree, one a job, each with a core of its own where the system can pin processes."""

    def __init__(self, folder: pathlib.Path, number: int) -> None:
        self._free: queue.Queue[tuple[pathlib.Path, int | None]] = queue.Queue()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
        everywhere = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
        at_the_top = {"runs", "data", "build"}  # jebm/runs and jebm/data are the library's

        def leave(path: str, names: list[str]) -> set[str]:
            return everywhere(path, names) | (at_the_top if pathlib.Path(path) == ROOT else set())

        for i in range(number):
            shutil.copytree(ROOT, folder / f"copy{i}", ignore=leave)
            self._free.put((folder / f"copy{i}", cores[i % len(cores)]))
        self._environment = _environment(folder)

    def run(self, tests: Sequence[str], limit: float, mutant: Mutant | None = None) -> Outcome:
        """The tests in a free copy, with the fault if one is given."""
        copy, core = self._free.get()
        try:
            if mutant is not None:
                (copy / mutant.file).write_text(code(mutant))
            return _pytest(tests, copy, core, limit, self._environment)
        finally:
            if mutant is not None:
                shutil.copyfile(ROOT / mutant.file, copy / mutant.file)
            self._free.put((copy, core))


def _environment(folder: pathlib.Path) -> dict[str, str]:
    """One thread a process, and one cache of compiled programs: those that a fault does not change are found there."""
    golden = ROOT.parent / "shared/golden/open"
    return {
        **({"JEBM_GOLDEN": str(golden)} if golden.is_dir() else {}),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        **os.environ,
        "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def _pytest(
    tests: Sequence[str], copy: pathlib.Path, core: int | None, limit: float, environment: dict[str, str]
) -> Outcome:
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
    start = time.monotonic()
    process = subprocess.Popen(
        words, cwd=copy, env={**environment, "PYTHONPATH": str(copy)}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    status: int | None = None
    try:
        output, _ = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and what the tests have started
        output, _ = process.communicate()
    return Outcome(status, time.monotonic() - start, output)


def controls(tests: Sequence[str], run: Callable[..., Outcome], pool: ThreadPoolExecutor) -> dict[str, dict[str, Any]]:
    """Each file or node on the tree as it is: seconds, tests that passed, and what is wrong with it, if anything."""

    def control(test: str) -> dict[str, Any]:
        if not (ROOT / test.partition("::")[0]).exists():
            return {"seconds": 0.0, "passed": 0, "wrong": "there is no such file"}
        outcome = run([test], LONGEST)
        wrong = ""
        if outcome.status != 0:
            wrong = f"fails without a fault ({outcome.seen_by or outcome.output.strip()[-200:]})"
        elif not outcome.passed:
            wrong = "has no test that runs (skipped, or all of them slow)"
        _say(f"control   {outcome.seconds:6.1f} s  {test}  {wrong}")
        return {"seconds": round(outcome.seconds, 1), "passed": outcome.passed, "wrong": wrong}

    return dict(zip(tests, pool.map(control, tests), strict=True))


def examine(mutant: Mutant, of: dict[str, dict[str, Any]], run: Callable[..., Outcome]) -> dict[str, Any]:
    """One mutant's line of the table."""
    line: dict[str, Any] = {"name": mutant.name, **mutant._asdict(), "result": "", "seen_by": "", "seconds": 0.0}
    tests = [test for test in mutant.tests if not of[test]["wrong"]]
    try:
        code(mutant)
    except (OSError, ValueError):
        return {**line, "result": "not applicable"}
    if not tests:
        return {**line, "result": "no control"}
    outcome = run(tests, 60 + 5 * sum(of[test]["seconds"] for test in tests), mutant)
    if outcome.status is None:
        result = "timeout"
    elif outcome.status == 0:
        result = "survived"
    elif outcome.status in (3, 4, 5):  # pytest's own troubles
        result = "no control"
    else:
        result = "killed"
    return {**line, "result": result, "seen_by": outcome.seen_by, "seconds": round(outcome.seconds, 1)}


RESULTS = ("killed", "timeout", "survived", "not applicable", "no control")


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Results by file, the share seen, and the survivors."""
    by_file: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for line in lines:
        by_file[line["file"]][line["result"]] += 1
    out = [f"{'':46s}{'all':>6s}" + "".join(f"{name:>16s}" for name in RESULTS)]
    for name, counts in [*by_file.items(), ("all", sum(by_file.values(), collections.Counter()))]:
        out.append(f"{name:46s}{counts.total():6d}" + "".join(f"{counts[result]:16d}" for result in RESULTS))
    counts = sum(by_file.values(), collections.Counter())
    seen, ran = counts["killed"] + counts["timeout"], counts["killed"] + counts["timeout"] + counts["survived"]
    out.append(f"seen: {seen} of {ran} ({100 * seen / max(ran, 1):.1f} %)")
    for result in RESULTS[1:]:
        out += [f"{result}: {line['name']}" for line in lines if line["result"] == result]
    return "\n".join(out)


def campaign(mutants: Sequence[Mutant], jobs: int = 1) -> dict[str, Any]:
    """Controls and mutants; what the JSON file holds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jebm-mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies = Copies(pathlib.Path(folder), jobs)
        of = controls(selections(mutants), copies.run, pool)
        left = len(mutants)
        lock = threading.Lock()

        def one(mutant: Mutant) -> dict[str, Any]:
            nonlocal left
            line = examine(mutant, of, copies.run)
            with lock:
                left -= 1
                _say(f"{line['result']:9s} {line['seconds']:6.1f} s  {line['name']}  [{line['seen_by']}]  {left} left")
            return line

        lines = list(pool.map(one, mutants))
    wrong = {test: entry["wrong"] for test, entry in of.items() if entry["wrong"]}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start), "jobs": jobs,
        "counts": dict(collections.Counter(line["result"] for line in lines)),
        "wrong_controls": wrong, "controls": of, "mutants": lines,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="PATTERN", default="", help="a regular expression on names (see --list)")
    parser.add_argument("--every", type=int, default=1, help="every n-th of them: a sample")
    parser.add_argument("--jobs", type=int, default=1, help="at once, each in its own copy of the tree (default 1)")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the results")
    parser.add_argument("--list", action="store_true", help="names only")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if re.search(options.only, mutant.name)][:: options.every]
    if options.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    found = campaign(chosen, options.jobs)
    print(table(found["mutants"]))
    for test, wrong in found["wrong_controls"].items():
        print(f"control: {test} {wrong}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    complete = not found["wrong_controls"] and not {"not applicable", "no control"} & set(found["counts"])
    return 0 if chosen and complete else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
