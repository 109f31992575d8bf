"""Distance of healthy runs from the rules of recovery, replayed on the metrics of finished runs.

    python benchmarks/recovery_rules.py runs/*/metrics.jsonl

For every log: the largest distance of the energy gap from its median in median deviations, the largest factors by which
a displacement or a gradient norm left its median, the longest growth of the gap, how near the run came to the absolute
rules (``config.json`` beside the log gives their scale), and what the rules would have said.
"""

import argparse
import json
import math
import pathlib
import statistics
from typing import Any

from jebm.config import RecoveryConfig
from jebm.runs import RunDirectory
from jebm.runs import run as runs
from jebm.training import recovery


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", metavar="METRICS", nargs="+", type=pathlib.Path)
    logs = [(read(path), scale_of(path)) for path in parser.parse_args().logs]
    measured = [largest(lines) | nearest(lines, scale) for lines, scale in logs if len(lines) > recovery.ENOUGH]
    alarms = [reason for lines, scale in logs if (reason := first_alarm(lines, scale))]
    longest = max(len(lines) for lines, _ in logs)
    print(f"{len(measured)} logs of more than {recovery.ENOUGH} lines, the longest of {longest}")
    for name in ("gap_deviations", "ratio_up", "ratio_down", "stuck_lines"):
        print(f"  {name:15s} largest {max(row[name] for row in measured):.3g}")
    for name in ("displacement", "saturated", "gradient"):
        print(f"  {name:15s} largest {max(row[name] for row in measured):.3g}")
    for name in ("update", "energy"):
        print(f"  {name:15s} smallest {min(row[name] for row in measured):.3g}")
    print(f"  alarms of the default rules: {len(alarms)} {alarms[:3]}")


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics, with the gap where a log is older than it."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    kept: list[dict[str, float]] = []
    for line in lines:
        if "event" not in line:
            negative = line.get("energy_negative", line.get("energy_negative"))
            gap = {"energy_gap": line["energy_data"] - negative} if negative is not None else {}
            kept.append({k: math.nan if v is None else v for k, v in (gap | line).items()})
    return kept


def largest(lines: list[dict[str, float]]) -> dict[str, float]:
    """The extremes of one log, each line against those before it."""
    out = dict.fromkeys(("gap_deviations", "ratio_up", "ratio_down", "stuck_lines"), 0.0)
    growing = 0
    for i, line in enumerate(lines):
        past = [recovery.watched(p) for p in lines[max(0, i - recovery.WINDOW) : i]]
        for name, v in recovery.watched(line).items():
            values: list[Any] = [p[name] for p in past if name in p]
            if name == "energy_gap" and values:
                growing = growing + 1 if values[-1] * v > 0 and abs(v) > abs(values[-1]) else 0
                out["stuck_lines"] = max(out["stuck_lines"], growing)
            if len(values) < recovery.ENOUGH:
                continue
            median = statistics.median(values)
            if name == "energy_gap":
                spread = statistics.median(abs(p - median) for p in values)
                spread = max(spread, 0.01 * statistics.median(map(abs, values)))
                out["gap_deviations"] = max(out["gap_deviations"], abs(v - median) / spread if spread else 0.0)
            elif median > 0 and v > 0:
                out["ratio_up"] = max(out["ratio_up"], v / median)
                out["ratio_down"] = max(out["ratio_down"], median / v)
    return out


def scale_of(path: pathlib.Path) -> recovery.Scale:
    """The scale of the run whose log it is; that of digits without a configuration beside it."""
    config = path.with_name("config.json")
    if not config.exists():
        return recovery.Scale(64, 1e-5)
    method = runs.method_of(RunDirectory(path.parent))
    return recovery.Scale(math.prod(method.image_shape), method.temperature)


def nearest(lines: list[dict[str, float]], scale: recovery.Scale) -> dict[str, float]:
    """The extremes of what the absolute rules bound: the largest over lines, of updates and energies the smallest."""

    def values(*ends: str) -> list[float]:
        return [v for line in lines for name, v in line.items() if name.endswith(ends) or name.startswith(ends)]

    sizes = [max(abs(line[n]) for n in recovery.ENERGIES if n in line) for line in lines if "energy_data" in line]
    return {
        "displacement": max(values("displacement"), default=0.0),
        "saturated": max(values("saturated_pixels"), default=0.0),
        "gradient": max(values("gradient_norm"), default=0.0) / scale.dimension,
        "update": min((v for v in values("update_ratio/") if v), default=math.inf),
        "energy": min(sizes, default=math.inf) / scale.temperature if scale.temperature else math.inf,
    }


def first_alarm(lines: list[dict[str, float]], scale: recovery.Scale) -> str | None:
    """First finding of the default rules."""
    for i, line in enumerate(lines):
        past = [recovery.watched(p) for p in lines[max(0, i - recovery.WINDOW) : i]]
        if reason := recovery.diagnose(RecoveryConfig(), past, line):
            return f"line {i + 1}: {reason}"
        if found := recovery.senseless(scale, past, line):
            return f"line {i + 1}: {found.reason}"
    return None


if __name__ == "__main__":
    main()
