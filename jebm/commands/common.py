"""Arguments and actions that several verbs share."""

import argparse
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from jebm import paths
from jebm.errors import shown

if TYPE_CHECKING:
    from jebm.runs.run import Run

T = TypeVar("T")

__all__ = [
    "add_config", "add_run", "add_seed", "add_step", "enable_compilation_cache", "integer", "leaving_at_once", "load",
    "model", "path", "place", "progress", "log", "run_directory", "seed",
]  # fmt: skip


# --- types of arguments: argparse puts the option's name before the message -------------------------------------------


def path(text: str) -> pathlib.Path:
    """A path on this machine."""
    return _path(text, paths.local)


def place(text: str) -> paths.Path:
    """A path on this machine or in an object store."""
    return _path(text, paths.place)


def run_directory(text: str) -> paths.Path:
    """A path that checkpoints can be written to and read from."""
    return _path(text, lambda text: paths.require_checkpoints(paths.place(text)))


def _path(text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model(text: str) -> str | paths.Path:
    """A trained model, see `jebm.load`: a path, a name, or an address."""
    return text if text.startswith(("http://", "https://")) else run_directory(text)


def integer(least: int, most: int = 10**10) -> Callable[[str], int]:
    """The type of whole numbers in [least, most]."""

    def parse(text: str) -> int:
        value = _integer(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{shown(value)}: it must be at least {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{shown(value)}: it must be at most {most:,}")
        return value

    return parse


def seed(text: str) -> int:
    """A seed of `jax.random.key`."""
    value = _integer(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{shown(value)}: it must be in [0, 2**63)")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a whole number") from None


# --- arguments --------------------------------------------------------------------------------------------------------


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG, see `jebm.config.load_file`."""
    parser.add_argument(
        "config", metavar="CONFIG", type=path, help="a name of 'jebm configs', or a file with a function get_config()"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """DIR, see `jebm.load`."""
    parser.add_argument(
        "dir", metavar="DIR", type=model,
        help="a run directory; or a file of 'jebm export', its URL#sha256=HASH, or a model of 'jebm export --list'",
    )  # fmt: skip


def add_step(parser: argparse.ArgumentParser) -> None:
    """``--step``, of the checkpoint."""
    parser.add_argument("--step", type=integer(0), help="step of the checkpoint (default: the newest)")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``, of all draws."""
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws (default %(default)s)")


# --- actions ----------------------------------------------------------------------------------------------------------


def log(line: str) -> None:
    """Prints a line for the user."""
    print(f"jebm: {line}", flush=True)


def load(directory: str | paths.Path, step: int | None = None) -> "Run":
    """The trained model in a directory or a file, see `jebm.load`."""
    enable_compilation_cache()
    from jebm.runs.run import load

    return load(directory, step)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between commands, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    import jax

    cache = paths.user_cache()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """``(n, num)``: moves a progress bar by n finished images of num, and before the first of them counts seconds.

    The first call makes it, so that no error has one.
    """
    from tqdm import tqdm

    from jebm.training.output import ticking

    bar: tqdm | None = None
    waiting = contextlib.ExitStack()

    def advance(n: int, num: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=num, desc=title, unit="image", mininterval=0.2 if sys.stderr.isatty() else 15.0)
            waiting.enter_context(ticking(bar, f"{title}: compiling, first batch"))
        if n:
            waiting.close()
        bar.update(n)

    try:
        yield advance
    finally:
        waiting.close()
        if bar is not None:
            bar.close()


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process at once: for work that leaves nothing half-done, such as imports.

    A KeyboardInterrupt would be lost if it came inside a callback.
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
