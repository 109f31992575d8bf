"""``jebm report DIR``: writes the page of a run."""

import argparse
from typing import TYPE_CHECKING

from jebm.commands import common

if TYPE_CHECKING:
    from jebm.runs.directory import RunDirectory

HELP = "Write one self-contained DIR/report.html: samples, scores, a chain that moves, curves."
EXAMPLE = "jebm report runs/digits"
ALONE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    common.add_run(parser)


def run(options: argparse.Namespace) -> None:
    """Looks at the model if there is a checkpoint, and writes the page."""
    from jebm.runs.directory import RunDirectory

    directory = RunDirectory(options.dir)
    directory.read_config()
    write(directory)
    print(f"report: {directory.report}")


def write(directory: "RunDirectory") -> None:
    """Writes the whole page; before the first checkpoint, the page without what needs the model."""
    from jebm.report import looks, page
    from jebm.training import NoCheckpoint

    try:
        trained = common.load(directory.path)
    except NoCheckpoint:
        page.write(directory)
    else:
        looks.report(trained)
