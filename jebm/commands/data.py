"""``jebm data info|prepare SOURCE``: describes a data source, or prepares it."""

import argparse
import pathlib

from jebm.commands import common
from jebm.errors import ConfigError

HELP = "Describe a data source or what it needs, or prepare a set: an archive, or of TensorFlow Datasets."
EXAMPLE = "jebm data prepare mnist"
MEMORY = "give a smaller --size, or image files as folder:PATH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Action and source."""
    parser.add_argument("action", choices=["info", "prepare"])
    parser.add_argument(
        "source", metavar="SOURCE",
        help="digits, npz:PATH, folder:PATH, hf:NAME, tfds:NAME[:SPLIT] or points:NAME; prepare: tfds:NAME, or mnist, "
        "fashion_mnist, kmnist, cifar10, cifar100, svhn_cropped, which become data/NAME.npz",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", type=common.path, help="prepare: another name of that archive")
    parser.add_argument(
        "--originals", metavar="DIR", type=common.path,
        help="prepare: a folder with the files of the archive's authors (default: they are downloaded)",
    )  # fmt: skip
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
    from jebm.data.prepare.catalogue import ARCHIVES

    source = options.source
    to_archive = options.action == "prepare" and source in ARCHIVES
    if not to_archive and (options.out or options.originals):
        raise ConfigError(f"--out and --originals are for 'jebm data prepare NAME', NAME of {', '.join(ARCHIVES)}")
    if to_archive:
        out = options.out or pathlib.Path(f"data/{source}.npz")
        if out.suffix != ".npz":
            raise ConfigError(f"--out {out}: give the name of an .npz")
        source = f"npz:{archives.prepare_archive(source, out, options.originals, say=common.log)}"
    elif options.action == "prepare":
        archives.prepare(source, say=common.log)
    print("\n".join(archives.info(source, options.size, options.crop)))
