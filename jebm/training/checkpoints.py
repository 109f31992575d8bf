"""Checkpoints of the whole state, written by orbax beside the training step, verified when read."""

import contextlib
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jebm import sharding
from jebm.training.state import TrainState, fingerprint

__all__ = ["CheckpointNotWritten", "Checkpoints", "NoCheckpoint"]


class NoCheckpoint(ValueError):
    """There is no whole checkpoint to read."""


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """``directory/<step>/``: items ``state`` (arrays) and ``meta`` (JSON: fingerprint, and what the caller adds).

    Orbax writes to a temporary name and renames when whole. A directory damaged later is noticed by the fingerprint.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None = None) -> None:
        """Opens ``directory``; with ``keep``, only that many of the newest stay when new ones are saved."""
        self._directory = directory
        self._failed = False
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, newest last."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to save ``state``; returns when its arrays are copied, while files are written behind."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        meta = {**meta, "fingerprint": np.asarray(fingerprint(state)).tolist()}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns when everything that was started is on disk; raises `CheckpointNotWritten` where it is not."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax passes on what tensorstore and the system say, in many types
            self._failed = True
            reason = " ".join(str(error).split())[:300]
            raise CheckpointNotWritten(
                f"a checkpoint could not be written in {self._directory} ({reason}); those before it are whole. Make "
                "room, and the same command goes on"
            ) from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The newest whole checkpoint, or that of ``step``, placed and typed as ``like`` (abstract will do).

        A checkpoint that cannot be read, or does not give its fingerprint again, is passed over with a warning.

        Raises:
            NoCheckpoint: none is left, or the one asked for is not there or not whole.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise NoCheckpoint(f"no checkpoint of step {step} in {self._directory}; there are {steps or 'none'}")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return self._read(candidate, like)
            except Exception as error:  # whatever a torn file makes orbax raise
                reason = " ".join(str(error).split())[:200]
                message = f"the checkpoint of step {candidate} in {self._directory} is not whole ({reason})"
                if step is not None:
                    raise NoCheckpoint(message) from error
                warnings.warn(f"{message}: passed over", stacklevel=2)
        raise NoCheckpoint(f"no whole checkpoint in {self._directory}: train first, or give another directory")

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        # orbax's arrays may view memory that it reuses, and the training step donates: copy
        placement = jax.tree.map(lambda a: a.sharding, like)
        state = jax.jit(lambda tree: jax.tree.map(lambda a: a.copy(), tree), out_shardings=placement)(restored.state)
        if np.asarray(fingerprint(state)).tolist() != restored.meta["fingerprint"]:
            raise ValueError("its arrays differ from those that were saved")
        return state, restored.meta

    def discard_after(self, step: int) -> None:
        """Sets checkpoints newer than ``step`` aside, in ``<directory>_damaged``: a resumed run writes them again.

        They are not deleted: what this version cannot read another one may.
        """
        sharding.wait_for_all("before checkpoints are set aside")
        aside = self._directory.with_name(self._directory.name + "_damaged")
        for newer in [s for s in self.steps() if s > step] if sharding.is_main() else []:
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(newer), ignore_errors=True)
            (self._directory / str(newer)).rename(aside / str(newer))
        sharding.wait_for_all("checkpoints were set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for what was started and lets go of the directory."""
        if self._failed:  # orbax would raise the same again
            return
        with contextlib.closing(self._manager):
            self.wait()
