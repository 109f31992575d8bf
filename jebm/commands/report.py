"""``jebm report DIR``: writes the page of a run."""

import argparse
import pathlib
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
    print(f"report: {write(options.dir).report}")


def write(path: str | pathlib.Path) -> "RunDirectory":
    """Writes the whole page of a trained model; before a run's first checkpoint, without what needs the model."""
    from jebm.errors import ConfigError
    from jebm.report import looks, page
    from jebm.runs.directory import RunDirectory
    from jebm.training import NoCheckpoint

    try:
        trained = common.load(path)
    except NoCheckpoint:  # before the first one there are curves to show
        directory = RunDirectory(pathlib.Path(path))
        page.write(directory)
        return directory
    except ConfigError as error:  # over a Python function, or another run that is gone: what was written is shown
        directory = RunDirectory(pathlib.Path(path))
        if not directory.config.is_file():
            raise
        page.write(directory)
        common.log(f"no new pictures of the model: {error}")
        return directory
    looks.report(trained)
    return trained.directory
