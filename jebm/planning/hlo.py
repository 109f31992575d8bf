"""Reading of compiled programs (HLO text): loops and their trip counts, products, collectives, cycles.

A compiler counts the body of a loop once. Here each instruction has the number of times that it runs: the product of
the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

__all__ = [
    "Collectives", "Executed", "Instruction", "collectives", "cycles", "executed", "flops", "flops_by_precision",
    "kernels", "moved", "products",
]  # fmt: skip

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
PRODUCTS = ("dot", "convolution")
# libraries that a GPU's compiler calls: for convolutions, where image, kernel and output are among (result, operands);
# window and labels are those of the convolution whose value or gradient it is
CONVOLUTIONS = {
    "__cudnn$convForward": (1, 2, 0),
    "__cudnn$convBiasActivationForward": (1, 2, 0),
    "__cudnn$convBackwardInput": (0, 2, 1),
    "__cudnn$convBackwardFilter": (1, 0, 2),
}
DOTS = ("__cublas$gemm", "__cublas$lt$matmul")
# lines that move nothing through memory by themselves: what they call is counted where it runs
FREE = (
    "after-all", "async-start", "bitcast", "call", "conditional", "constant", "get-tuple-element",
    "optimization-barrier", "parameter", "partition-id", "replica-id", "tuple", "while",
)  # fmt: skip
SLICES = ("dynamic-slice", "gather", "slice")
ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
CONTRACTED = re.compile(r'(?:lhs_contracting_dims=\{|"lhs_contracting_dimensions":\[)([\d,"]*)')
FLOAT32 = re.compile(r"operand_precision=\{highest|\"operand_precision\":\[\"HIGHEST")


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        shapes: of its results: one, unless it is a tuple.
        sizes: their bytes.
        opcode: as HLO names it.
        operands: names of lines of the same computation.
        text: what follows: attributes; the value of a constant, the number of a parameter.
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
        inside: the lines of a fusion, by name.
    """

    line: Instruction
    operands: tuple[Instruction, ...]
    times: int
    looped: bool
    fused: bool
    inside: Mapping[str, Instruction]


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
    rest = inside if opcode in ("constant", "parameter") else text[closing:]
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
        called = dict(CALLED.findall(line.text))
        inside_it = computations[called["calls"]] if line.opcode == "fusion" else {}
        yield Executed(line, operands, times, looped, fused, inside_it)
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
        (line.shapes[0], *(shape for one in operands for shape in one.shapes))
        for line, operands, _, within, *_ in lines
        if _kind(line) and within == looped
    ]


def cycles(lines: list[Executed]) -> int:
    """The compiler's estimate of a TPU's clock cycles; 0 in programs that have none."""
    return sum(
        times * int(found[1])
        for line, _, times, _, fused, _ in lines
        if not fused and (found := CYCLES.search(line.text))
    )


def flops(lines: list[Executed]) -> int:
    """Operations of all matrix products and convolutions, a multiplication with an addition being two.

    Products with zeros, of the padding or between the pixels of a dilated image, are left out.
    """
    return sum(flops_by_precision(lines).values())


def flops_by_precision(lines: list[Executed]) -> dict[str, int]:
    """`flops` apart by their arithmetic: "bfloat16" (of two bytes), "float32" (asked for) and "default".

    "default" is float32 of which nothing was asked: a device may multiply it as it likes.
    """
    found: dict[str, int] = {}
    for line, operands, times, *_ in lines:
        if _kind(line):
            narrow = all(sum(one.sizes) <= 2 * math.prod(one.shapes[0]) for one in operands[:2])
            precision = "bfloat16" if narrow else "float32" if FLOAT32.search(line.text) else "default"
            count = times * _multiplications(line, operands) * 2
            found[precision] = found.get(precision, 0) + count
    return found


def moved(lines: list[Executed]) -> int:
    """Bytes that go through a device's memory: what each line that runs on its own reads and writes.

    Of an array from which a fusion takes a slice, or into which it writes one, only the slice counts. What stays in a
    cache is not known.
    """
    total = 0
    for line, operands, times, _, fused, inside in lines:
        if not fused and _runs(line) and line.opcode.removesuffix("-start") not in COLLECTIVES:
            total += times * (_moved_by_fusion(line, inside) if inside else _moved_alone(line, operands))
    return total


def kernels(lines: list[Executed]) -> int:
    """How many lines that move something run on their own: each is a kernel that a GPU starts, or a few."""
    return sum(times for line, _, times, _, fused, _ in lines if not fused and _runs(line))


def _runs(line: Instruction) -> bool:
    return line.opcode not in FREE and not line.opcode.endswith(("-done", "-update"))


def _moved_alone(line: Instruction, operands: tuple[Instruction, ...]) -> int:
    if line.opcode in SLICES:
        return 2 * sum(line.sizes)
    if line.opcode == "dynamic-update-slice":
        return 2 * sum(operands[1].sizes)
    return sum(line.sizes) + sum(sum(one.sizes) for one in operands)


def _moved_by_fusion(line: Instruction, inside: Mapping[str, Instruction]) -> int:
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for one in inside.values():
        for place, operand in enumerate(one.operands):
            users.setdefault(operand, []).append((one, place))
    total = sum(line.sizes)
    for name, one in inside.items():
        if one.opcode == "parameter":
            # a slice that is read costs itself; an array that is written into costs what is written, twice
            takes = [user for user, place in users.get(name, []) if user.opcode in SLICES and place == 0]
            gives = [u for u, place in users.get(name, []) if u.opcode == "dynamic-update-slice" and place == 0]
            if len(takes) + len(gives) < len(users.get(name, [])) or not (takes or gives):
                total += sum(one.sizes)
            else:
                total += sum(sum(user.sizes) for user in takes)
                total += sum(2 * sum(inside[user.operands[1]].sizes) - sum(user.sizes) for user in gives)
    return total


def _kind(line: Instruction) -> str:
    """The product that a line is, if it is one."""
    if line.opcode in PRODUCTS:
        return line.opcode
    target = TARGET.search(line.text) if line.opcode == "custom-call" else None
    if target is None:
        return ""
    return "convolution" if target[1] in CONVOLUTIONS else "dot" if target[1] in DOTS else ""


def _multiplications(line: Instruction, operands: tuple[Instruction, ...]) -> int:
    shapes = (line.shapes[0], operands[0].shapes[0], operands[1].shapes[0])
    if _kind(line) == "dot":
        contracted = CONTRACTED.search(line.text)
        axes = [int(n) for n in contracted[1].replace('"', "").split(",") if n] if contracted else []
        return math.prod(shapes[0]) * math.prod(shapes[1][axis] for axis in axes)
    target, labels = TARGET.search(line.text), re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    assert labels is not None
    order = CONVOLUTIONS[target[1]] if target else (1, 2, 0)
    image, kernel, output = (
        dict(zip(label, shapes[place], strict=True)) for label, place in zip(labels.groups(), order, strict=True)
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
