"""``jebm restore DIR``: restores degraded images with a trained model as the prior."""

import argparse
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from jebm.commands import common
from jebm.errors import ConfigError

HELP = "Restore degraded images with a trained model as the prior."
EXAMPLE = "jebm restore runs/digits --task superres --factor 2 --input small.png --out restored.png"
ALONE = True
MEMORY = "lower --restarts, or give fewer images"
MOST = 10**6  # of steps and restarts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR, images in and out, and the fields of `Task` and `RestorationConfig`."""
    from jebm.restoration import RestorationConfig
    from jebm.restoration.tasks import TASKS, Task

    common.add_run(parser)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--input", metavar="PATH", required=True, type=common.place,
        help="degraded images: a picture, a folder of pictures, an .npz (array 'x') or an .npy",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="PATH", required=True, type=common.place,
        help="a .png (one image), an .npz (array 'x', uint8), or a folder; scores go to a .json beside it",
    )  # fmt: skip
    parser.add_argument("--original", metavar="PATH", type=common.place, help="undamaged images, to compare with")
    parser.add_argument("--degrade", action="store_true", help="the input is undamaged: degrade it first")
    common.add_seed(parser)
    common.add_step(parser)
    _add_fields(parser.add_argument_group("degradation"), Task("inpaint"))
    _add_fields(parser.add_argument_group("sampler"), RestorationConfig())


# fields of `Task` that are arguments of their own
OWN = ("name", "seed")


def _add_fields(parser: argparse._ArgumentGroup, settings: Any) -> None:
    from jebm.typed import keys, written

    for key in keys(settings):
        if key.name in OWN:
            continue
        literal = get_origin(key.kind) is Literal
        value = "chosen by a rule" if key.value is None else written(key.value)
        parser.add_argument(
            f"--{key.name.replace('_', '-')}", default=key.value, metavar=None if literal else "VALUE",
            type=str if literal else _type(key.name, key.kind), choices=get_args(key.kind) if literal else None,
            help=f"{key.meaning.removesuffix('.')} (default: {value})".replace("%", "%%").replace("``", ""),
        )  # fmt: skip


def _type(name: str, kind: Any) -> Callable[[str], Any]:
    """The argparse type of a field's values."""
    if name == "mask":  # a picture's path, or the name of a mask
        return lambda text: str(common.place(text))
    return common.integer(0, MOST) if kind is int else functools.partial(_typed, kind, name)


def _typed(kind: Any, name: str, text: str) -> Any:
    from jebm.typed import parse

    try:
        return parse(text, kind, name)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> None:
    """Restores, writes, and prints mean scores."""
    from jebm.restoration import RestorationConfig
    from jebm.restoration.files import restore_files
    from jebm.restoration.tasks import Task
    from jebm.typed import keys

    of_task = {key.name: getattr(options, key.name) for key in keys(Task(options.task)) if key.name != "name"}
    config = RestorationConfig(**{key.name: getattr(options, key.name) for key in keys(RestorationConfig())})
    trained = common.load(options.dir, options.step)
    with common.progress("restore") as advance:
        scores = restore_files(
            trained, Task(options.task, **of_task), options.input, options.out, config=config,
            original=options.original, degrade=options.degrade, seed=options.seed, progress=advance,
        )  # fmt: skip
    print(f"{len(scores['images'])} images: {options.out}")
    for name, values in scores.items():
        if name.startswith(("consistency", "psnr", "ssim")):
            print(f"  {name:20s} {sum(values) / len(values):10.5g}")
