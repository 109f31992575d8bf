"""Writers of metrics and pictures besides ``metrics.jsonl``: TensorBoard, and Weights & Biases.

Each gets the numbers of ``metrics.jsonl``, under the same names and steps, and the sample grids.
"""

import contextlib
import importlib
import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jebm import files, paths
from jebm.config import Config, to_dict
from jebm.errors import ConfigError
from jebm.runs.directory import RunDirectory

__all__ = ["Writer", "check", "opened"]


class Writer(Protocol):
    """Where a run's numbers and pictures go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of a step."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, C]."""

    def rewind(self, step: int) -> None:
        """Withdraws what was written of later steps, which are going to be trained again."""

    def close(self) -> None:
        """Hands everything on."""


class TensorBoard:
    """Event files in ``<directory>/tensorboard``, by tensorboardX.

    They are only appended to: what is withdrawn stays in them, and a mark makes TensorBoard leave it out.
    """

    def __init__(self, directory: RunDirectory, config: Config, start: int) -> None:
        self._folder = directory.path / "tensorboard"
        self._open(start)

    def _open(self, start: int) -> None:
        from tensorboardX import SummaryWriter

        # names have whole seconds; the suffix keeps the files of one second apart, in their order
        self._writer = SummaryWriter(
            str(self._folder), purge_step=start + 1, filename_suffix=f".{time.time_ns()}", flush_secs=30
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Writer`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """As `Writer`."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def rewind(self, step: int) -> None:
        """As `Writer`."""
        self._writer.close()
        self._open(step)

    def close(self) -> None:
        """As `Writer`."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, resumed by its identifier in ``<directory>/wandb.json``.

    Its own environment variables apply: ``WANDB_PROJECT``, ``WANDB_MODE``, ... Steps only grow there: of steps that are
    trained again, after a kill or a recovery, it keeps the numbers that it has.
    """

    def __init__(self, directory: RunDirectory, config: Config, start: int) -> None:
        import wandb

        note = directory.path / "wandb.json"
        try:
            identity = str(json.loads(note.read_text())["id"])
        except FileNotFoundError:
            identity = secrets.token_hex(8)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{note} cannot be read ({error}): remove it, and a new run of W&B begins") from None
        folder = tempfile.gettempdir() if paths.is_remote(directory.path) else str(directory.path)
        try:
            self._run = wandb.init(
                id=identity, name=directory.path.name, dir=folder, resume="allow", config=to_dict(config)
            )
        except Exception as error:  # not logged in, no network, in many kinds
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"training.writers: W&B cannot start ({reason}); log in with 'wandb login', or set WANDB_MODE=offline"
            ) from None
        self._images = wandb.Image
        with files.whole(note) as temporary:
            temporary.write_text(json.dumps({"id": identity}) + "\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Writer`."""
        self._log(step, dict(values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """As `Writer`."""
        self._log(step, {name: self._images(pixels)})

    def _log(self, step: int, content: dict[str, Any]) -> None:
        self._run.log(content, step=step)

    def rewind(self, step: int) -> None:
        """As `Writer`; it has no such thing."""

    def close(self) -> None:
        """As `Writer`."""
        self._run.finish()


WRITERS: dict[str, tuple[str, type[TensorBoard] | type[WandB]]] = {
    "tensorboard": ("tensorboardX", TensorBoard), "wandb": ("wandb", WandB)
}  # fmt: skip


def check(names: Sequence[str], directory: RunDirectory) -> None:
    """Looks whether the writers of a configuration can be had.

    Raises:
        ConfigError: one whose package is not installed; event files in an object store.
    """
    for name in names:
        package, _ = WRITERS[name]
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f"training.writers={name} needs {package}, which is not installed: pip install {package}"
            ) from None
        if name == "tensorboard" and paths.is_remote(directory.path):
            raise ConfigError(
                f"training.writers=tensorboard: event files are appended to, which {directory.path} does not allow; "
                "take a local --workdir, or wandb"
            )


@contextlib.contextmanager
def opened(names: Sequence[str], directory: RunDirectory, config: Config, start: int) -> Iterator[list[Writer]]:
    """The writers of a configuration, which go on after step ``start``; closed at the end.

    Raises:
        ConfigError: one that cannot start.
    """
    with contextlib.ExitStack() as held:
        yield [held.enter_context(contextlib.closing(WRITERS[name][1](directory, config, start))) for name in names]
