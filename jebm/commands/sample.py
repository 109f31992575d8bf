"""``jebm sample DIR --out OUT``: draws samples from a trained model."""

import argparse

from jebm.commands import common, hosts
from jebm.errors import ConfigError

HELP = "Draw samples from a trained model."
EXAMPLE = "jebm sample runs/digits --num 64 --out samples.png"
ALONE = True
MEMORY = "lower --batch-size (or --num, for a .png)"
AGAIN = "; the same command resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR, how many, and where to."""
    common.add_run(parser)
    parser.add_argument("--num", type=common.integer(1), default=64, help="number of samples (default %(default)s)")
    parser.add_argument(
        "--out", type=common.place, required=True, help="a .png (a grid), an .npz (array 'x', uint8), or a folder"
    )
    common.add_seed(parser)
    common.add_step(parser)
    parser.add_argument(
        "--batch-size", type=common.integer(1), default=256,
        help="images in memory at a time, over all devices (default %(default)s)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Draws and writes them."""
    from jebm.runs import samples

    if not options.out.name:
        raise ConfigError(f"--out {options.out}: give the name of a file or of a new folder")
    if options.out.suffix.lower() not in samples.KINDS:
        raise ConfigError(f"--out {options.out}: give a .png, an .npz, or a folder (a name without a suffix)")
    trained = common.load(options.dir, options.step)
    with common.progress("sample") as advance:
        samples.draw_to(
            options.out, trained, options.num, seed=options.seed, batch_size=options.batch_size,
            progress=lambda n: advance(n, options.num), draw=hosts.drawing(trained, None, options.ask),
        )  # fmt: skip
    cost = trained.method.evaluations_per_image
    print(f"{options.num} samples of step {trained.step}: {options.out}   network evaluations each: {cost}")
