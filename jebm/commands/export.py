"""``jebm export DIR --out FILE``: packs a trained model into one file."""

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from jebm.commands import common
from jebm.errors import ConfigError, shown

if TYPE_CHECKING:
    from jebm.runs.run import Run

HELP = "Pack a trained model into one file, to sample, score and restore with; list the models that come with jebm."
EXAMPLE = "jebm export runs/digits --out digits.jebm --card licence=Apache-2.0"
ALONE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR, FILE, and what the card says; or ``--list``."""
    parser.add_argument("dir", metavar="DIR", type=common.model, nargs="?", help="a run directory")
    parser.add_argument("--out", metavar="FILE", type=common.path, help="a new .jebm file")
    common.add_step(parser)
    parser.add_argument(
        "--card", metavar="NAME=TEXT", action="append", default=[],
        help="what else its card says, such as licence=..., command=...; may be repeated",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the trained models that come with jebm")


def run(options: argparse.Namespace) -> None:
    """Packs, or lists."""
    from jebm.runs import packed

    if options.list:
        for name, path in packed.released().items():
            model = packed.read(path)
            print(f"{name}: {model.card.get('what', model.card['family'])} ({path.stat().st_size / 1e6:.2f} MB)")
        return
    if options.dir is None or options.out is None:
        raise ConfigError(f"give a run directory and --out FILE{packed.SUFFIX}, or --list")
    if options.out.suffix != packed.SUFFIX:
        raise ConfigError(f"--out {options.out}: give the name of a {packed.SUFFIX} file")
    given = dict(_assigned(text) for text in options.card)
    trained = common.load(options.dir, options.step)
    card = card_of(trained) | given
    digest = packed.pack(trained, options.out, card)
    print(json.dumps(card, indent=2, ensure_ascii=False))
    print(f"\n{options.out}   {options.out.stat().st_size / 1e6:.2f} MB   sha256={digest}")
    print("samples, scores and restorations come from it as from the run; training does not go on from it")
    print(f"next:\n  jebm sample {options.out} --out samples.png")


def _assigned(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+", name):
        raise ConfigError(f"--card {shown(text)}: write NAME=TEXT, the name in small letters")
    return name, value


def card_of(trained: "Run") -> dict[str, Any]:
    """What a run says of itself: family, data, size, versions, and the scores that `jebm evaluate` has written."""
    from jebm import methods
    from jebm.methods.shared import has_ema, parameter_counts
    from jebm.runs import show

    if "card" in trained.meta:
        return dict(trained.meta["card"])
    return {
        "family": methods.family_of(trained.config.method),
        "data": trained.config.data.source,
        "data_fingerprint": trained.meta.get("data_fingerprint"),
        "step": trained.step,
        "weights": trained.method.weights if has_ema(trained.state) else "raw",
        "parameters": parameter_counts(trained.method.networks(trained.state)),
        "versions": trained.meta.get("versions"),
        "scores": show.scores(trained),
    }
