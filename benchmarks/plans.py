"""Plans of all experiments of paper size, for devices that are not here, a program at a time.

    pip install '.[plan]' '.[cuda12]'
    python benchmarks/plans.py --out results/plans.json

A program is planned in a process of its own, with a limit; what is in the file already is not planned again, so the
command may be stopped and started. What does not finish within the limit stands there as such, and is tried again with
``--again``. Experiments of one program at one size (a family's 64-pixel sets) are compiled once. ``--table`` prints
the file as Markdown.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from jebm.config import load_file
from jebm.files import whole

FOLDERS = ("hat_ebm", "denoising_ebm", "ec_vae")  # what compiles fast first
TOPOLOGIES = ("h100:2x8", "v5p:2x2x1", "v5e:4x4")
NAMES = {"h100:2x8": "2 x 8 H100", "v5p:2x2x1": "v5p-8", "v5e:4x4": "v5e-16"}
PROGRAMS = {"step": "training step", "grid": "sample grid"}
# the frozen generator of another run: a network of its size is as good for a plan
SETTINGS = {"configs/hat_ebm/cifar10_retrofit.py": ["method.generator=network"]}
ROOT = pathlib.Path(__file__).parents[1]


def command(config: str, topology: str, program: str) -> list[str]:
    """What is run, and what the file says of it."""
    settings = [part for setting in SETTINGS.get(config, []) for part in ("--set", setting)]
    return ["jebm", "plan", config, "--topology", topology, "--only", program, *settings, "--json"]


def same_program(config: str, program: str) -> str:
    """Experiments that agree in this have the same program."""
    experiment = load_file(ROOT / config)
    size = experiment.data.batch_size if program == "step" else experiment.training.num_samples
    flags = (experiment.data.flip, experiment.data.dequantize) if program == "step" else ()
    return repr((experiment.method, size, flags))


def planned(arguments: list[str], python: str, limit: float) -> dict[str, object]:
    """One plan in a process of its own."""
    begun = time.time()
    process = subprocess.Popen(
        [python, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"failed": f"not compiled within {limit:.0f} s"}
    if not out:
        return {"failed": (error.splitlines() or [""])[-1][-300:]}
    return {"plan": json.loads(out.splitlines()[-1]), "seconds": time.time() - begun}


def table(rows: list[dict]) -> list[str]:
    """One line an experiment and topology."""
    found = {(row["config"], row["topology"], row["program"]): row for row in rows}
    lines = [
        "| experiment | devices | rows a device | peak a device | FLOP a device and step | bytes through memory "
        "| collectives a step: in loops; outside | a step | images/s | steps, hours | grid: peak, time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for config, topology in dict.fromkeys((row["config"], row["topology"]) for row in rows):
        other = {row["program"]: row.get("same_as", config) for row in rows if row["config"] == config}
        name = config.removeprefix("configs/").removesuffix(".py")
        start = f"| `{name}` | {NAMES.get(topology, topology)} |"
        step, grid = (found.get((other.get(p, config), topology, p), {}) for p in PROGRAMS)
        num_steps = load_file(ROOT / config).training.num_steps
        if "plan" not in step:
            lines.append(f"{start} {step.get('failed', 'not planned')} |" + " |" * 8)
            continue
        run, one = step["plan"], step["plan"]["programs"]["training step"]
        sent = {
            place: [kind["bytes"] for kind in one[f"collectives_{place}_loops"].values()]
            for place in ("inside", "outside")
        }
        number = sum(kind["number"] for kind in one["collectives_outside_loops"].values())
        drawn = grid.get("failed", "not planned")
        if "plan" in grid:
            program = grid["plan"]["programs"]["sample grid"]
            drawn = f"{program['peak'] / 1e9:.2f} GB, {program['seconds']:.2g} s"
        fits = "" if run["fits"] else ", **does not fit**"
        lines.append(
            f"{start} {run['rows']} of {run['batch_size']} | {one['peak'] / 1e9:.2f} GB{fits} "
            f"| {one['flops'] / 1e12:.3g} T | {one['moved'] / 1e9:.0f} GB "
            f"| {sum(sent['inside']) / 1e6:.0f} MB; {number}, {sum(sent['outside']) / 1e6:.0f} MB "
            f"| {1e3 * one['seconds']:.0f} ms ({max(one['bounds'], key=one['bounds'].get)}) "
            f"| {run['images_per_second']:,.0f} | {num_steps:,}, {num_steps * one['seconds'] / 3600:.1f} h "
            f"| {drawn} |"
        )
    return lines


def main() -> None:
    """Plans what is missing, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results/plans.json")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a program (default %(default).0f)")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--match", default="", help="only experiments whose path has this")
    parser.add_argument("--python", default=sys.executable, help="of an environment with the compilers")
    parser.add_argument("--again", action="store_true", help="what failed, too")
    parser.add_argument("--table", action="store_true", help="print the file as a table, and plan nothing")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    if options.table:
        print("\n".join(table(rows)))
        return
    files = [
        str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / "configs" / folder).glob("*.py"))
    ]
    for topology in options.topologies:
        for program in PROGRAMS:
            for config in (file for file in files if options.match in file):
                wanted = {"config": config, "topology": topology, "program": program}
                old = next((row for row in rows if wanted.items() <= row.items()), None)
                if old is not None and ("plan" in old or not options.again):
                    continue
                rows = [row for row in rows if row is not old]
                arguments = command(config, topology, program)
                same = next(other for other in files if same_program(other, program) == same_program(config, program))
                if same != config and options.match in same:
                    found: dict[str, object] = {"same_as": same}
                else:
                    print(" ".join(arguments), file=sys.stderr, flush=True)
                    found = planned(arguments, options.python, options.limit)
                rows.append({**wanted, "command": " ".join(arguments), **found})
                with whole(options.out) as path:
                    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
