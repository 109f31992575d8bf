"""``jebm configs``: lists the experiments."""

import argparse
import ast
from typing import TYPE_CHECKING

from jebm.commands import common
from jebm.errors import ConfigError

if TYPE_CHECKING:
    from jebm.config import Config

HELP = "List the experiments, one line each."
EXAMPLE = "jebm configs --parameters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Folder, and whether networks are counted."""
    parser.add_argument("--parameters", action="store_true", help="with parameter counts per network, by shape only")
    parser.add_argument("--dir", type=common.path, help="a folder of your own (default: those that come with jebm)")


def run(options: argparse.Namespace) -> None:
    """Prints them."""
    from jebm.config import load_file, named
    from jebm.training import NoCheckpoint

    files = named() if options.dir is None else {str(path): path for path in sorted(options.dir.rglob("*.py"))}
    if not files:
        where = "this installation" if options.dir is None else repr(str(options.dir))
        raise ConfigError(f"no configurations in {where}: give a folder of them by --dir")
    for name, path in files.items():
        config = load_file(path)
        headline, _, _ = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
        print(f"{name}: {headline}")
        if options.parameters:
            try:
                counts = parameter_counts(config)
            except (ConfigError, NoCheckpoint) as error:  # its frozen generator has not been trained yet
                print(f"    not counted: {error}")
                continue
            for name, count in counts.items():
                print(f"    {name:12s} {count:>14,}")


def parameter_counts(config: "Config") -> dict[str, int]:
    """Parameters per network, and their total; by shape only, no memory is used."""
    import jax

    from jebm.methods import shared
    from jebm.runs.run import abstract_state, build

    method = build(config)
    networks = jax.eval_shape(method.networks, abstract_state(method, config).method)
    counts = shared.parameter_counts(networks)
    return {**counts, "total": sum(counts.values())}
