"""``jebm evaluate DIR``: scores a trained model."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jebm.commands import common, hosts
from jebm.errors import ConfigError

if TYPE_CHECKING:
    from jebm.evaluation import Record
    from jebm.methods.base import Weights
    from jebm.runs.run import Run
    from jebm.sharding import Ask

HELP = "Score a trained model: one JSON record per metric in DIR/evaluation."
EXAMPLE = "jebm evaluate runs/digits --metrics generation,ood"
ALONE = True
MEMORY = "lower --num, or evaluation.batch_size in DIR/config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR, the metrics, and how they are measured."""
    common.add_run(parser)
    parser.add_argument(
        "--metrics",
        help="comma-separated: generation, reconstruction, scores, ood, likelihood, long_run, step_sizes (default: the "
        "first four)",
    )
    common.add_step(parser)
    parser.add_argument("--seed", type=common.seed, help="seed of the draws (default: evaluation.seed of the run)")
    parser.add_argument(
        "--num", type=common.integer(20), help="number of generated images (default: evaluation.num_samples of the run)"
    )
    parser.add_argument("--weights", choices=["raw", "ema"], help="which weights (default: those of the family)")
    parser.add_argument(
        "--features", choices=["auto", "inception", "substitute"], default="auto",
        help="where FID is measured: Inception, or a declared substitute, never called FID (default: Inception for "
        "images of 32 px and more if 'jebm convert inception' has installed its weights)",
    )  # fmt: skip
    parser.add_argument(
        "--reference", choices=["test", "train", "validation"], default="test",
        help="the split to compare with; validation, of a run with data.validation, is for tuning and stands for the "
        "test images in all metrics (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=int, choices=[1, 10, 100, 1000], default=100,
        help="of long_run: how many times the steps of training (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--ood", metavar="SOURCE", action="append", default=[],
        help="a data source of outliers, in addition to the synthetic ones; may be repeated",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Scores, and renews the report."""
    from jebm.evaluation import METRICS
    from jebm.report import page

    metrics = tuple(options.metrics.split(",")) if options.metrics else None
    for name in metrics or ():
        if name not in METRICS:
            raise ConfigError(f"--metrics {name!r}: there are {', '.join(METRICS)}")
    trained = common.load(options.dir, options.step)
    chosen = {"metrics": metrics} if metrics else {}
    score(
        trained, seed=options.seed, n=options.num, weights=options.weights, space=options.features,
        reference=options.reference, longest=options.longest, outliers=tuple(options.ood), ask=options.ask, **chosen,
    )  # fmt: skip
    page.write(trained.directory)
    print(f"records: {trained.directory.evaluation}   report: {trained.directory.report}")


def score(trained: "Run", weights: "Weights | None" = None, ask: "Ask | None" = None, **options: Any) -> None:
    """Evaluates, and prints a line for each record; the processes that ``ask`` reaches generate, too."""
    from tqdm import tqdm

    from jebm.evaluation.run import evaluate_run
    from jebm.evaluation.yardsticks import is_yardstick
    from jebm.report import scores

    headline = f"scores of step {trained.step}, ↓ lower or ↑ higher is better (each record says how it was measured):"
    own = trained.config.method.SUMMARY.scores

    def show(record: "Record") -> None:
        nonlocal headline
        if is_yardstick(record.metric):  # in the table below
            return
        if headline:
            print(headline)
            headline = ""
        arrow = scores.ARROWS[scores.direction(record, own)] or " "
        print(f"  {record.metric:28s} {record.value:12.5g} {arrow}  (n = {record.n})", flush=True)

    with tqdm(desc="features", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        records = evaluate_run(
            trained, weights=weights, draw=hosts.drawing(trained, weights, ask), log=common.log, on_record=show,
            on_features=bar.update, **options,
        )  # fmt: skip
    for line in scores.beside(records):
        print(line)
