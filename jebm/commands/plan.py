"""``jebm plan CONFIG --topology v5e:4x4``: says what a run would need and do on devices that need not be here."""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from jebm.commands import common
from jebm.errors import JebmError

if TYPE_CHECKING:
    from jebm.config import Config
    from jebm.planning import Plan, Program

HELP = "Say, before a run, whether it fits some devices, what it sends between them and how long it takes."
EXAMPLE = "jebm plan configs/hat_ebm/cifar10_synthesis.py --topology v5e:4x4"
MEMORY = "compiling for large networks takes some gigabytes; close other programs"


class DoesNotFit(JebmError):
    """A program needs more memory than a device has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, and the devices."""
    common.add_config(parser)
    parser.add_argument(
        "--topology", required=True,
        help="kind and shape of a slice: cpu:8, or with pip install 'jebm[plan]' v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:4x4",
    )  # fmt: skip
    parser.add_argument(
        "--slices", type=common.integer(1, 1000), default=1, help="how many of them (default %(default)s)"
    )
    parser.add_argument(
        "--set", metavar="KEY.PATH=VALUE", action="append", default=[], help="change a key, as 'jebm train' does"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(options: argparse.Namespace) -> None:
    """Compiles and prints; status 1 where something does not fit."""
    from jebm.config import load_file, override
    from jebm.planning import plan, topology

    config = override(load_file(options.config), options.set)
    devices = topology(options.topology, options.slices)  # before anything asks for a device
    found = plan(config, devices, options.slices, log=lambda line: print(f"jebm: {line}", file=sys.stderr, flush=True))
    advice = _advice(config, found)
    if options.json:
        print(json.dumps(_as_json(found, advice)))
    else:
        print("\n".join(_text(str(options.config), found)))
    if found.too_large:
        what = " and the ".join(found.too_large)
        raise DoesNotFit(f"more than {_size(found.memory)} a device for the {what}; try {', or '.join(advice)}")


def _advice(config: "Config", found: "Plan") -> list[str]:
    """What to try where something does not fit."""
    if not found.too_large:
        return []
    tries = []
    if getattr(config.method, "rematerialize", None) is False:
        tries.append("--set method.rematerialize=true")
    if hasattr(config.training, "microbatches"):
        tries.append("training.microbatches")
    if found.state > found.memory / 4 and config.training.fsdp < found.devices:
        tries.append(f"--set training.fsdp={min(found.devices, 2 * config.training.fsdp)}")
    if "sample grid" in found.too_large:
        tries.append("a smaller training.num_samples")
    if "evaluation batch" in found.too_large:
        tries.append("a smaller evaluation.batch_size")
    return [*tries, "a larger slice"]


def _as_json(found: "Plan", advice: list[str]) -> dict[str, object]:
    whole = dataclasses.asdict(found)
    for program in whole["programs"].values():
        for place in ("inside", "outside"):
            kinds = program.pop(place)
            program[f"collectives_{place}_loops"] = {
                kind: {"number": number, "bytes": size} for kind, (number, size) in kinds.items()
            }
    hours = {name: found.hours(name) for name in found.programs}
    return {
        **whole, "fits": not found.too_large, "too_large": found.too_large, "try": advice,
        "images_per_second": found.images_per_second, "hours": hours,
    }  # fmt: skip


def _text(name: str, found: "Plan") -> list[str]:
    slices = f"{found.slices} slices of " if found.slices > 1 else ""
    mesh = " x ".join(f"{size} {axis}" for axis, size in found.mesh.items())
    columns = list(found.programs.items())
    rows = {
        "peak memory a device": [_size(p.peak) for _, p in columns],
        "temporaries": [_size(p.temporary) for _, p in columns],
        "operations of products": [_scaled(p.flops, "FLOP") for _, p in columns],
        "collectives in loops": [_sent(p, inside=True) for _, p in columns],
        "collectives outside": [_sent(p, inside=False) for _, p in columns],
        "estimated time": [_time(p.seconds) for _, p in columns],
        "how often": [f"{found.runs[n]:,}" for n, _ in columns],
        "estimated hours": [_hours(found.hours(n)) for n, _ in columns],
    }
    rate = found.images_per_second
    lines = [
        f"{name} on {slices}{found.topology}: {found.devices} devices, hosts: {found.hosts}, mesh: {mesh}",
        f"rows a device: {found.rows} of {found.batch_size}; state: {_size(found.state)}, batch: {_size(found.batch)}, "
        f"memory of a device: {_size(found.memory)}",
        "",
        " " * 24 + "".join(f"{n:>24s}" for n, _ in columns),
        *(f"{title:24s}" + "".join(f"{cell:>24s}" for cell in cells) for title, cells in rows.items()),
        "",
    ]
    if rate is None:
        lines.append("No time is estimated for simulated devices. Memory is the compiler's word for a CPU.")
    else:
        total = sum(found.hours(n) or 0.0 for n in ("training step", "sample grid") if n in found.programs)
        lines += [
            f"estimate: {rate:,.0f} images/s, {_hours(total)} h for {found.num_steps:,} steps and grids",
            "Memory, collectives and operations are read from the compiled programs. Times are estimates: the cycles",
            "that the compiler expects, loops multiplied, and collectives at the links' full speed; data and files are",
            "not in them.",
        ]
    return lines


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _size(num_bytes: int) -> str:
    return _scaled(num_bytes, "B")


def _sent(program: "Program", *, inside: bool) -> str:
    kinds = (program.inside if inside else program.outside).values()
    number = sum(kind.number for kind in kinds)
    return f"{number:,}, {_size(sum(kind.num_bytes for kind in kinds))}" if number else "none"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.2f}"
