"""``jebm plan CONFIG --topology v5e:4x4``: says what a run would need and do on devices that need not be here."""

import argparse
import dataclasses
import json
import sys
import textwrap
from typing import TYPE_CHECKING

from jebm.commands import common
from jebm.errors import JebmError

if TYPE_CHECKING:
    from jebm.config import Config
    from jebm.planning import Plan, Program

HELP = "Say, before a run, whether it fits some devices, what it sends between them and how long it takes."
EXAMPLE = "jebm plan configs/hat_ebm/cifar10_synthesis.py --topology v5e:4x4"
PROGRAMS = {"step": "training step", "grid": "sample grid", "evaluation": "evaluation batch"}
MEMORY = "compiling for large networks takes some gigabytes; close other programs"


class DoesNotFit(JebmError):
    """A program needs more memory than a device has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, and the devices."""
    common.add_config(parser)
    parser.add_argument(
        "--topology", required=True,
        help="kind and shape of a slice: cpu:8, with pip install libtpu v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:4x4, "
        "with 'jax[cuda12]' nodes x GPUs: a100:1x8, h100:2x8, h200:2x8",
    )  # fmt: skip
    parser.add_argument(
        "--slices", type=common.integer(1, 1000), default=1, help="how many of them (default %(default)s)"
    )
    parser.add_argument(
        "--set", metavar="KEY.PATH=VALUE", action="append", default=[], help="change a key, as 'jebm train' does"
    )
    parser.add_argument(
        "--only", choices=PROGRAMS,
        help="compile this alone: the training step, on which memory and hours of a training depend, the sample grid, "
        "or a batch of the evaluation",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(options: argparse.Namespace) -> None:
    """Compiles and prints; status 1 where something does not fit."""
    from jebm.config import load_file, override
    from jebm.errors import ConfigError
    from jebm.planning import plan, topology

    config = override(load_file(options.config), options.set)
    devices = topology(options.topology, options.slices)  # before anything asks for a device
    log = lambda line: print(f"jebm: {line}", file=sys.stderr, flush=True)  # noqa: E731
    only = PROGRAMS.get(options.only)
    found = plan(config, devices, options.slices, only=only, log=log, done=lambda *one: log(_said(*one)))
    if not found.programs:
        raise ConfigError(f"--only {options.only}: this run draws none: training.sample_every=0")
    tries = advice(config, found)
    if options.json:
        print(json.dumps(_as_json(found, tries)))
    else:
        print("\n".join(_text(str(options.config), found)))
    if found.too_large:
        what = " and the ".join(found.too_large)
        raise DoesNotFit(f"more than {_size(found.memory)} a device for the {what}; try {', or '.join(tries)}")


def advice(config: "Config", found: "Plan") -> list[str]:
    """What to try where something does not fit."""
    if not found.too_large:
        return []
    tries = []
    if getattr(config.method, "rematerialize", None) is False:
        tries.append("--set method.rematerialize=true")
    parts = 2 * config.training.microbatches
    if (
        not found.whole_batch
        and "training step" in found.too_large
        and config.data.batch_size % (found.devices * parts) == 0
    ):
        tries.append(f"--set training.microbatches={parts}")
    if found.state > found.memory / 4 and config.training.fsdp < found.devices:
        tries.append(f"--set training.fsdp={min(found.devices, 2 * config.training.fsdp)}")
    if "sample grid" in found.too_large:
        tries.append("a smaller training.num_samples")
    if "evaluation batch" in found.too_large:
        tries.append("a smaller evaluation.batch_size")
    return [*tries, "a larger slice"]


def _as_json(found: "Plan", tries: list[str]) -> dict[str, object]:
    whole = dataclasses.asdict(found)
    for program in whole["programs"].values():
        for place in ("inside", "outside"):
            kinds = program.pop(place)
            program[f"collectives_{place}_loops"] = {
                kind: {"number": number, "bytes": size} for kind, (number, size) in kinds.items()
            }
    hours = {name: found.hours(name) for name in found.programs}
    return {
        **whole, "said_by": _sources(found), "fits": not found.too_large, "too_large": found.too_large, "try": tries,
        "images_per_second": found.images_per_second, "hours": hours,
    }  # fmt: skip


def _sources(found: "Plan") -> dict[str, str]:
    """Where the figures come from."""
    cycles = any("cycles" in program.bounds for program in found.programs.values())
    times = {
        True: "estimate: the cycles that the compiler expects, loops multiplied, and collectives at the links' speed",
        False: "estimate: a roofline, the longest of products at the chip's peak, memory at its bandwidth, collectives "
        "at that of the links, or between nodes of the network, and starts of kernels at 2 µs each",
    }
    counts = "read from the compiled programs, loops multiplied"
    known = found.programs and all(program.bounds for program in found.programs.values())
    return {
        "memory": "the compiler's word", "collectives, operations and bytes": counts,
        "times": times[cycles] if known else "none for simulated devices",
    }  # fmt: skip


def _said(name: str, program: "Program") -> str:
    took = f", about {_time(program.seconds)}" if program.seconds else ""
    return (
        f"{name}: {_size(program.peak)} a device{took}, {_scaled(program.flops, 'FLOP')}; compiled in "
        f"{program.compilation:.0f} s"
    )


def _text(name: str, found: "Plan") -> list[str]:
    slices = f"{found.slices} slices of " if found.slices > 1 else ""
    mesh = " x ".join(f"{size} {axis}" for axis, size in found.mesh.items())
    columns = list(found.programs.items())
    rows = {
        "peak memory a device": [_size(p.peak) for _, p in columns],
        "temporaries": [_size(p.temporary) for _, p in columns],
        "operations of products": [_scaled(p.flops, "FLOP") for _, p in columns],
        "bytes through memory": [_size(p.moved) for _, p in columns],
        "collectives in loops": [_sent(p, inside=True) for _, p in columns],
        "collectives outside": [_sent(p, inside=False) for _, p in columns],
        "estimated time": [_time(p.seconds) for _, p in columns],
        "most of it": [max(p.bounds, key=p.bounds.__getitem__, default="-") for _, p in columns],
        "how often": [f"{found.runs[n]:,}" for n, _ in columns],
        "estimated hours": [_hours(found.hours(n)) for n, _ in columns],
    }
    lines = [
        f"{name} on {slices}{found.topology}: {found.devices} devices, hosts: {found.hosts}, mesh: {mesh}",
        f"rows a device: {found.rows} of {found.batch_size}; state: {_size(found.state)}, batch: {_size(found.batch)}, "
        f"memory of a device: {_size(found.memory)}",
        "",
        " " * 24 + "".join(f"{n:>24s}" for n, _ in columns),
        *(f"{title:24s}" + "".join(f"{cell:>24s}" for cell in cells) for title, cells in rows.items()),
        "",
    ]
    training = [n for n in ("training step", "sample grid") if n in found.programs]
    if found.images_per_second is not None:
        total = _hours(sum(found.hours(n) or 0.0 for n in training))
        what = " and grids" if len(training) > 1 else ""
        lines.append(
            f"estimate: {found.images_per_second:,.0f} images/s, {total} h for {found.num_steps:,} steps{what}"
        )
    said = [f"{what}: {source}" for what, source in _sources(found).items()]
    lines += textwrap.wrap("; ".join(said) + "; data and files are not in it.", 119)
    if found.share < 1:
        share = f"JAX takes {found.share:.0%} of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."
        lines.append(share)
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
