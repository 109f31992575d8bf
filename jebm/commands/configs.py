"""``jebm configs``: lists the experiments."""

import argparse
import ast
import pathlib
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
    parser.add_argument(
        "--dir", type=common.path, default=pathlib.Path("configs"), help="their folder (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Prints them."""
    from jebm.config import load_file
    from jebm.training import NoCheckpoint

    files = sorted(options.dir.rglob("*.py"))
    if not files:
        raise ConfigError(f"no configurations in {str(options.dir)!r}: run it in the repository, or give --dir")
    for path in files:
        config = load_file(path)
        headline, _, _ = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
        print(f"{path}: {headline}")
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

    from jebm.methods import Trained
    from jebm.runs.run import abstract_state, build

    method = build(config)
    networks = jax.eval_shape(method.networks, abstract_state(method, config).method)
    counts = {}
    for name, network in networks.items():
        params = network.params if isinstance(network, Trained) else network
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {**counts, "total": sum(counts.values())}
