"""``jebm train CONFIG --workdir DIR``: trains an experiment, and prints the keys of its configuration."""

import argparse
import shlex
from typing import TYPE_CHECKING

from jebm.commands import common, evaluate, hosts, report
from jebm.errors import shown

if TYPE_CHECKING:
    from jebm import sharding
    from jebm.config import Config
    from jebm.runs.directory import RunDirectory

HELP = "Train an experiment; resumes automatically if DIR contains checkpoints."
EXAMPLE = "jebm train digits/ec_vae --workdir runs/digits --set training.num_steps=500"
MEMORY = "lower data.batch_size, or training.num_samples of the sample grids (--set data.batch_size=N)"
AGAIN = "; the same command resumes from the newest checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, and a directory to train in or ``--keys``."""
    common.add_config(parser)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--workdir", metavar="DIR", type=common.run_directory, help="the run directory")
    either.add_argument(
        "--keys", action="store_true",
        help="print every key that --set can change, with its type, value, range and meaning; train nothing",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY.PATH=VALUE", action="append", default=[],
        help="change a key, or several: --set a=1 b=2; all are checked together",
    )  # fmt: skip
    parser.add_argument(
        "--allow-changed-data", action="store_true",
        help="resume even if the images, or the frozen generator, differ from those that the run started with",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", type=_steps,
        help="trace these steps with jax.profiler into DIR/profile; the first step of a start compiles",
    )  # fmt: skip


def _steps(text: str) -> tuple[int, int]:
    """The type of ``--profile``."""
    words = text.split(":")
    if len(words) != 2 or not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise argparse.ArgumentTypeError(f"{shown(text)}: write the first and the last step, such as 10:15")
    first, last = map(int, words)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{shown(text)}: steps are numbered from 1, and the first comes first")
    return first, last


def run(options: argparse.Namespace) -> None:
    """Trains, or prints the keys."""
    from jebm.config import load_file, override
    from jebm.training.output import surviving_streams

    if options.keys:
        print(_table(override(load_file(options.config), options.set)))
        return
    with surviving_streams(), common.leaving_at_once():  # until the training loop, which saves on Ctrl-C
        _train(override(load_file(options.config), options.set), options)


def _table(config: "Config") -> str:
    """A line for each key: name, type, value, range, meaning."""
    from jebm.typed import described, keys, written

    rows = [(key.name, described(key.kind), written(key.value), key.rule, key.meaning) for key in keys(config)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _train(config: "Config", options: argparse.Namespace) -> None:
    from jebm import sharding

    several = sharding.initialize()  # before anything asks for a device
    common.enable_compilation_cache()
    import jax

    from jebm.planning.peaks import peak
    from jebm.report import live
    from jebm.runs.directory import RunDirectory
    from jebm.training import train

    directory = RunDirectory(options.workdir)
    main_process = not several or sharding.is_main()
    with live.during(directory, _command(options), common.log) as on_grid:
        train(
            config, directory, log=common.log if main_process else lambda line: None,
            allow_changed_data=options.allow_changed_data, profile=options.profile, on_grid=on_grid,
            peak=peak(jax.devices()[0]),
        )  # fmt: skip
    sharding.led("after training", lambda ask: _finish(config, directory, options, ask), hosts.serving())


def _command(options: argparse.Namespace) -> str:
    """The command as it can be typed again."""
    words = ["jebm", "train", str(options.config), "--workdir", str(options.workdir)]
    return shlex.join([*words, *(["--set", *options.set] if options.set else [])])


def _finish(
    config: "Config", directory: "RunDirectory", options: argparse.Namespace, ask: "sharding.Ask | None"
) -> int:
    """Scores if that is asked for, writes the report, and says what there is and what comes next."""
    scored = config.training.evaluate_at_end
    if scored:
        evaluate.score(common.load(options.workdir), ask=ask)
    report.write(directory.path)
    newest = sorted(directory.samples.glob("step_*.png"))
    print(f"\ntrained {config.training.num_steps} steps")
    if newest:
        print(f"  sample grid   {newest[-1]}")
    print(f"  metrics       {directory.metrics}")
    if scored:
        print(f"  scores        {directory.evaluation}")
    print(f"  report        {directory.report}")
    assigned = dict(text.split("=", 1) for text in options.set)
    assigned["training.num_steps"] = str(2 * config.training.num_steps)
    longer = " ".join(shlex.quote(f"{key}={value}") for key, value in assigned.items())
    workdir = shlex.quote(str(options.workdir))
    print("next:")
    print(f"  jebm sample {workdir} --num 100 --out samples.png")
    if not scored:
        print(f"  jebm evaluate {workdir}")
    print(f"  jebm train {shlex.quote(str(options.config))} --workdir {workdir} --set {longer}")
    return 0
