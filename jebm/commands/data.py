"""``jebm data info|prepare SOURCE``: describes a data source, or prepares it."""

import argparse

from jebm.commands import common

HELP = "Describe a data source or what it needs, or prepare a set of TensorFlow Datasets."
EXAMPLE = "jebm data prepare tfds:cifar10"
MEMORY = "give a smaller --size, or image files as folder:PATH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Action and source."""
    parser.add_argument("action", choices=["info", "prepare"])
    parser.add_argument(
        "source", metavar="SOURCE", help="digits, npz:PATH, folder:PATH, tfds:NAME[:SPLIT] or points:NAME"
    )
    parser.add_argument(
        "--size", metavar="PIXELS", type=common.integer(1, 4096), help="info: the side that images are resized to"
    )
    parser.add_argument(
        "--crop", default="auto",
        help="info: none, centre, centre:N, box:L,T,R,B or random (default: %(default)s, the set's own)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Prepares if asked to, and prints what there is."""
    from jebm.data.prepare import archives

    if options.action == "prepare":
        archives.prepare(options.source, say=common.log)
    print("\n".join(archives.info(options.source, options.size, options.crop)))
