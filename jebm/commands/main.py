"""``jebm VERB ...``: reads the command line, runs the verb, and makes one line and a status of each error."""

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import jebm
from jebm.commands import common, configs, convert, data, evaluate, export, hosts, plan, report, restore, sample, train
from jebm.errors import ConfigError, JebmError

__all__ = ["VERBS", "main", "parse"]

VERBS: dict[str, Any] = {
    "train": train, "plan": plan, "sample": sample, "evaluate": evaluate, "restore": restore, "report": report,
    "export": export, "convert": convert, "data": data, "configs": configs,
}  # fmt: skip
"""Modules with ``HELP``, ``EXAMPLE``, ``add_arguments``, ``run``; with ``MEMORY`` and ``AGAIN`` where these differ, and
``ALONE`` where one process of many does the work, and asks the others by ``options.ask`` (`jebm.sharding.led`)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for a run that diverged or a plan that does not fit, 2 for a
    user's mistake or a machine too small, 130 for Ctrl-C. One process of many that loses another ends with 75.

    Everything but 0 goes with one line on standard error. An error that is none of these is a fault of jebm's and
    leaves with its traceback.
    """  # fmt: skip
    options = argparse.Namespace(verb=None)
    try:
        quiet_logs()  # a path in an object store is looked at while arguments are read
        with common.leaving_at_once():
            options = parse(sys.argv[1:] if arguments is None else arguments)
        warnings.showwarning = lambda message, *_, **__: print(f"jebm: warning: {message}", file=sys.stderr)
        return _run(options) if not getattr(options.verb, "ALONE", False) else _alone(options)
    except JebmError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _complain(f"interrupted{getattr(options.verb, 'AGAIN', '')}", 130)


def _alone(options: argparse.Namespace) -> int:
    """Of many processes the first does the work; the others generate with it, and end as it does."""
    with common.leaving_at_once():
        import jax
        from jax.errors import JaxRuntimeError

        from jebm import sharding

    if not sharding.initialize():
        return _run(options)

    def work(ask: sharding.Ask | None) -> int:
        common.log(f"process 0 does this; of {jax.process_count()} the others generate with it, and wait")
        try:
            options.ask = ask
            return _run(options)
        except JebmError as error:
            return _complain(error)

    try:
        return sharding.led("verb", work, hosts.serving())
    except (MemoryError, JaxRuntimeError) as error:
        return _of_the_machine(error, options)


def _run(options: argparse.Namespace) -> int:
    with common.leaving_at_once():  # these take a second
        from jax.errors import JaxRuntimeError

        from jebm.training import Diverged

    try:
        options.verb.run(options)
    except (Diverged, plan.DoesNotFit) as error:
        return _complain(error, 1)
    except BrokenPipeError as error:  # the reader of our output has gone, which only a training outlives
        return _complain(error) if options.verb is train and not options.keys else 0
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or ''}".removesuffix(": "))
    except (MemoryError, JaxRuntimeError) as error:
        return _of_the_machine(error, options)
    return 0


def _of_the_machine(error: Exception, options: argparse.Namespace) -> int:
    """Memory that is used up, or a process that is lost; raises what is neither."""
    import jax

    from jebm import sharding

    if not isinstance(error, MemoryError) and not _of_memory(error):
        if jax.process_count() == 1:
            raise error
        sharding.leave(error)
    return _complain(f"out of memory: {getattr(options.verb, 'MEMORY', 'close other programs')}")


def _complain(what: object, status: int = 2) -> int:
    """Prints one line, even if names in it contain line breaks."""
    text = " ".join(str(what).split())
    print(f"jebm: {text if len(text) <= 1500 else text[:1500] + ' ...'}", file=sys.stderr)
    return status


def _of_memory(error: BaseException) -> bool:
    return any(sign in str(error).upper().replace("_", " ") for sign in ("RESOURCE EXHAUSTED", "OUT OF MEMORY"))


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is an error like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (usage: {self.prog} --help)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, and its module in ``verb``.

    Raises:
        ConfigError: an argument that is missing, unknown or wrong.
    """
    words = _separated(arguments)
    parser = _Parser(prog="jebm", description="Energy-based generative image models in JAX: train, sample, score.")
    parser.add_argument("--version", action="version", version=f"jebm {jebm.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, verb in VERBS.items():
        command = verbs.add_parser(
            name, help=verb.HELP, description=verb.HELP, epilog=f"example:  {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(verb=verb)
        if name in words:  # the arguments of restore load JAX
            verb.add_arguments(command)
    return parser.parse_args(words, argparse.Namespace(ask=None))


def _separated(arguments: Sequence[str]) -> list[str]:
    """``--set a=1 b=2`` as ``--set a=1 --set b=2``: argparse would take a CONFIG that follows for an assignment."""
    words: list[str] = []
    for word in arguments:
        assigned = len(words) > 1 and (words[-2] == "--set" or words[-1].startswith("--set="))
        words += ["--set", word] if assigned and re.match(r"[\w.]+=", word) else [word]
    return words


def quiet_logs() -> None:
    """Leaves to the logs of libraries their errors, and to JAX its warning of an accelerator that is not used."""
    for name in ("orbax", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in (
        "absl",
        "asyncio",
        "concurrent.futures",
        "gcsfs",
        "s3fs",
    ):  # threads also log the errors that they pass on
        logging.getLogger(name).setLevel(logging.CRITICAL)
    devices = logging.getLogger("jax._src.xla_bridge")
    devices.setLevel(logging.WARNING)
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("jebm: warning: %(message)s"))
    devices.handlers, devices.propagate = [shown], False


if __name__ == "__main__":
    sys.exit(main())
