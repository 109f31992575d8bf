"""``jebm report DIR``: writes the page of a run."""

import argparse
from typing import TYPE_CHECKING

from jebm.commands import common

if TYPE_CHECKING:
    from jebm.runs.directory import RunDirectory
    from jebm.runs.run import Run

HELP = "Write one self-contained DIR/report.html: samples, neighbours, scores, chains, curves."
EXAMPLE = "jebm report runs/digits"
ALONE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    common.add_run(parser)


def run(options: argparse.Namespace) -> None:
    """Walks a chain if there is a checkpoint, and writes the page."""
    from jebm.errors import ConfigError
    from jebm.runs.directory import RunDirectory
    from jebm.training import NoCheckpoint

    directory = RunDirectory(options.dir)
    directory.read_config()
    try:
        walk(common.load(options.dir))
    except NoCheckpoint:  # before the first one there are curves to show
        pass
    except ConfigError as error:  # over a Python function, or another run that is gone: what was written is shown
        common.log(f"no new film of a chain: {error}")
    write(directory)
    print(f"report: {directory.report}")


def walk(trained: "Run") -> None:
    """Writes the chain that the report shows, or says why there is none."""
    from jebm.report.film import NoFilm, walk

    try:
        walk(trained)
    except NoFilm as error:
        common.log(f"no film of a chain: {error}")


def write(directory: "RunDirectory") -> None:
    """Writes the page."""
    from jebm.report import page

    page.write(directory)
