"""Reading of compiled programs (HLO text): loops and their trip counts, products, collectives, cycles.

A compiler counts the body of a loop once. Here each instruction has the number of times that it runs: the product of
the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Collectives", "Executed", "Instruction", "collectives", "cycles", "executed", "flops", "products"]

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
PRODUCTS = ("dot", "convolution")
ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        shapes: of its results: one, unless it is a tuple.
        sizes: their bytes.
        opcode: as HLO names it.
        operands: names of lines of the same computation.
        text: what follows: attributes; the value of a constant.
    """

    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str


class Executed(NamedTuple):
    """A line where it runs.

    Attributes:
        line: the instruction.
        operands: the instructions that give its operands.
        times: how often it runs.
        looped: whether a loop is around it.
        fused: whether it is inside a fusion, where nothing goes through memory.
    """

    line: Instruction
    operands: tuple[Instruction, ...]
    times: int
    looped: bool
    fused: bool


class Collectives(NamedTuple):
    """Collective operations: how many run, and the bytes that one device gives or gets, whichever is more."""

    number: int
    num_bytes: int


Computations = dict[str, dict[str, Instruction]]


def executed(text: str) -> list[Executed]:
    """All lines that run from the entry of a compiled program, each once for every place that it is called from."""
    entry, computations = _parse(text)
    return list(_walk(entry, computations, 1, looped=False, fused=False))


def _parse(text: str) -> tuple[str, Computations]:
    computations: Computations = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := LINE.match(line)):
            current[found[1]] = _instruction(found[2])
    return entry, computations


def _instruction(text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    shapes, sizes = [], []
    for name, bits, dimensions in ARRAY.findall(text[:end]):
        shape = tuple(int(n) for n in dimensions.split(",") if n)
        shapes.append(shape)
        sizes.append(0 if name == "token" else math.prod(shape) * int(bits or 8) // 8)
    opcode, inside = text[end:opening].strip(), text[opening + 1 : closing - 1]
    operands = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
    rest = inside if opcode == "constant" else text[closing:]
    return Instruction(tuple(shapes), tuple(sizes), opcode, operands, rest)


def _closing(text: str, start: int) -> int:
    """Just behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i + 1
    raise ValueError(f"no end of the parenthesis in {text[start : start + 80]!r}")


def _walk(name: str, computations: Computations, times: int, *, looped: bool, fused: bool) -> Iterator[Executed]:
    lines = computations[name]
    for line in lines.values():
        operands = tuple(lines[operand] for operand in line.operands if operand in lines)
        yield Executed(line, operands, times, looped, fused)
        called = dict(CALLED.findall(line.text))
        if line.opcode == "while":
            inner = times * _trip_count(line, computations[called["condition"]])
            yield from _walk(called["body"], computations, inner, looped=True, fused=fused)
        elif line.opcode in ("fusion", "call", "conditional", "async-start"):
            branches = [n.strip().lstrip("%") for found in BRANCHES.findall(line.text) for n in found.split(",")]
            for inner_name in [*called.values(), *branches]:
                inside = fused or line.opcode == "fusion"
                yield from _walk(inner_name, computations, times, looped=looped, fused=inside)


def _trip_count(loop: Instruction, condition: dict[str, Instruction]) -> int:
    """As the compiler says; else the bound of a loop that counts up from 0; 1 where neither can be read."""
    if known := TRIP_COUNT.search(loop.text):
        return int(known[1])
    bounds = [int(line.text) for line in condition.values() if line.opcode == "constant" and line.text.isdecimal()]
    return bounds[0] if len(bounds) == 1 else 1


# --- what is read from the lines ---------------------------------------------------------------------------------


def collectives(lines: list[Executed], *, looped: bool) -> dict[str, Collectives]:
    """The collectives inside loops, or outside, by opcode.

    A TPU's compiler starts one before a loop, continues it in pieces beside the loop's work, and ends it behind: that
    is one, outside, whose lines share their channel.
    """
    channels: dict[object, list[Executed]] = {}
    for number, one in enumerate(lines):
        if one.line.opcode.removesuffix("-start") in COLLECTIVES:
            channel = CHANNEL.search(one.line.text)
            channels.setdefault(channel[1] if channel else number, []).append(one)
    found: dict[str, Collectives] = {}
    for parts in channels.values():
        if all(part.looped for part in parts) == looped:
            line, operands, *_ = parts[0]
            kind, times = line.opcode.removesuffix("-start"), min(part.times for part in parts)
            given = sum(sum(operand.sizes) for operand in operands)
            got = sum(line.sizes) - (given if line.opcode != kind and len(line.sizes) > 1 else 0)
            before = found.get(kind, Collectives(0, 0))
            found[kind] = Collectives(before.number + times, before.num_bytes + times * max(given, got))
    return found


def products(lines: list[Executed], *, looped: bool) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of result and operands of each matrix product and convolution inside loops, or outside."""
    return [
        tuple(shape for one in (line, *operands) for shape in one.shapes)
        for line, operands, _, within, _ in lines
        if line.opcode in PRODUCTS and within == looped
    ]


def cycles(lines: list[Executed]) -> int:
    """The compiler's estimate of a TPU's clock cycles; 0 in programs that have none."""
    return sum(
        times * int(found[1]) for line, _, times, _, fused in lines if not fused and (found := CYCLES.search(line.text))
    )


def flops(lines: list[Executed]) -> int:
    """Operations of all matrix products and convolutions, a multiplication with an addition being two.

    Products with zeros, of the padding or between the pixels of a dilated image, are left out.
    """
    return sum(
        times * _multiplications(line, operands) * 2 for line, operands, times, _, _ in lines if line.opcode in PRODUCTS
    )


def _multiplications(line: Instruction, operands: tuple[Instruction, ...]) -> int:
    (result,), (left,), (right,) = line.shapes, operands[0].shapes, operands[1].shapes
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return math.prod(result) * math.prod(left[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    assert labels is not None
    image, kernel, output = (
        dict(zip(label, shape, strict=True))
        for label, shape in zip(labels.groups(), (left, right, result), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", line.text) or [""])[0][8:]))
    pairs = 1
    for axis in sorted(set(output) - {"b", "f"}):
        number = lambda name, default, i=int(axis): window[name].split("x")[i] if name in window else default  # noqa: E731
        stride, dilation, spread = (int(number(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(number("pad", "0_0").split("_")[0])
        places = np.add.outer(np.arange(output[axis]) * stride, np.arange(kernel[axis]) * spread) - before
        real = (places % dilation == 0) & (places >= 0) & (places <= (image[axis] - 1) * dilation)
        pairs *= int(real.sum())
    return output["b"] * output["f"] * kernel["i"] * pairs
