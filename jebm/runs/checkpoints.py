"""Checkpoints of the whole state, written by orbax beside the training step, verified when read.

A checkpoint is passed over only where it is provably not what was saved: its arrays do not give their fingerprint
again, or its files differ in size or SHA-256 from ``files.json``, written before orbax gives a checkpoint its name.
One that cannot be read for any other reason (rights, a network file system, memory, another version) ends the reading
with an error, and stays where it is.
"""

import contextlib
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator
from typing import IO, Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jebm import files, paths, sharding
from jebm.errors import JebmError
from jebm.runs.state import TrainState, fingerprint

__all__ = ["CheckpointNotRead", "CheckpointNotWritten", "Checkpoints", "NoCheckpoint"]

FILES = "files.json"  # in each checkpoint: {path of a file: [bytes, SHA-256]}
STAMPED = "_CHECKPOINT_METADATA"  # orbax adds the time to it when the record is made: its items are compared


class NoCheckpoint(JebmError):
    """There is no whole checkpoint to read."""


class CheckpointNotRead(JebmError):
    """A checkpoint could not be read although nothing shows that it is damaged; nothing was changed."""


class CheckpointNotWritten(JebmError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """``directory/<step>/``: items ``state`` (arrays), ``meta`` (JSON: fingerprint, shapes, what the caller adds), and
    ``files.json``.

    Orbax writes to a temporary name and renames when whole. A directory damaged later is noticed by the fingerprints.
    """

    def __init__(self, directory: paths.Path, keep: int | None = None) -> None:
        """Opens ``directory``; with ``keep`` to save, too: only that many of the newest stay.

        With ``keep`` all processes of a run do the same at the same time; without it each reads for itself.
        """
        self._directory = directory
        self._failed = False
        self._saved: int | None = None
        record = ocp.options.AsyncOptions(post_finalization_callback=self._record_files)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None, async_options=record)
        if keep is None and jax.process_count() > 1:
            own = jax.process_index()
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(own, {own}, f"reader{own}")
        absolute = directory if paths.is_remote(directory) else directory.absolute()
        self._manager = ocp.CheckpointManager(absolute, options=options)

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, newest last."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to save ``state``; returns when its arrays are copied, while files are written behind."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        meta = {**meta, "fingerprint": np.asarray(fingerprint(state)).tolist(), "shapes": _shapes(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with self._writing():
            self._manager.wait_until_finished()
            self._saved = step
            self._manager.save(step, args=items, force=True)

    def _record_files(self) -> None:
        """Called by orbax's thread when all files of a checkpoint are written, before it gets its name."""
        if paths.is_remote(self._directory):  # it has its name from the start, and gets a mark when it is whole
            folders: list[paths.Path] = [self._directory / str(self._saved)]
        else:
            folders = list(self._directory.glob(f"{self._saved}.orbax-checkpoint-tmp*"))
        if not sharding.is_main() or len(folders) != 1:  # not orbax's names of today: without the record
            return
        record = {path.relative_to(folders[0]).as_posix(): _size_and_digest(path) for path in files.below(folders[0])}
        (folders[0] / FILES).write_text(json.dumps(dict(sorted(record.items()))))

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
            if not self._directory.is_dir():
                ending = "the directory is gone, and the checkpoints with it"
            else:
                others = any(path.name.isdigit() for path in self._directory.iterdir())
                before = "those before it are whole" if others else "there is none before it"
                ending = f"{before}. Make room, and the same command resumes"
            raise CheckpointNotWritten(
                f"a checkpoint could not be written in {self._directory} ({reason}); {ending}"
            ) from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The newest whole checkpoint, or that of ``step``, placed and typed as ``like`` (abstract will do).

        A checkpoint that is provably damaged is passed over with a warning.

        Raises:
            NoCheckpoint: none is left, or the one asked for is not there or not whole.
            CheckpointNotRead: one could not be read, and its files are as they were saved or cannot be compared; or it
                holds arrays of other shapes than ``like``.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise NoCheckpoint(f"no checkpoint of step {step} in {self._directory}; there are {steps or 'none'}")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return self._read(candidate, like)
            except CheckpointNotRead:
                raise
            except Exception as error:  # what orbax and the system raise, of a torn file or of a whole one
                damage = str(error) if isinstance(error, _Damaged) else self._proven_damage(candidate, error)
                message = f"the checkpoint of step {candidate} in {self._directory} is not whole ({damage})"
                if step is not None:
                    raise NoCheckpoint(message) from error
                warnings.warn(f"{message}: passed over", stacklevel=2)
        raise NoCheckpoint(f"no whole checkpoint in {self._directory}: train first, or give another directory")

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        if damage := _damage(self._directory / str(step), within="meta/"):  # no fingerprint of arrays covers it
            raise _Damaged(damage)
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        self._check_shapes(step, meta.get("shapes"), _shapes(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        restored = self._manager.restore(step, args=items).state
        # orbax's arrays may view memory that it reuses, and the training step donates: copy
        placement = jax.tree.map(lambda a: a.sharding, like)
        state = jax.jit(lambda tree: jax.tree.map(lambda a: a.copy(), tree), out_shardings=placement)(restored)
        if np.asarray(fingerprint(state)).tolist() != meta["fingerprint"]:
            raise _Damaged("its arrays differ from those that were saved")
        return state, meta

    def _check_shapes(self, step: int, saved: dict[str, str] | None, expected: dict[str, str]) -> None:
        if saved is None or saved == expected:  # None: written before shapes were
            return
        name = next(n for n in [*expected, *saved] if saved.get(n) != expected.get(n))
        raise CheckpointNotRead(
            f"the configuration's shapes differ from those of the checkpoint of step {step} in {self._directory}: "
            f"{name} is {saved.get(name, 'not there')}, the configuration makes it {expected.get(name, 'not there')}; "
            "give the config.json with which it was trained. Nothing was changed"
        )

    def _proven_damage(self, step: int, error: Exception) -> str:
        """The damaged part; raises `CheckpointNotRead` where nothing proves that it is the checkpoint's fault."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        try:
            damage = _damage(self._directory / str(step))
        except (OSError, MemoryError) as unreadable:
            damage, reason = None, " ".join(f"{type(unreadable).__name__}: {unreadable}".split())[:200]
        if damage is None:
            raise CheckpointNotRead(
                f"the checkpoint of step {step} in {self._directory} cannot be read ({reason}), and nothing shows that "
                "it is damaged: mend the cause (rights, the file system, memory, versions), and the same command "
                "resumes; or move it away to resume from an earlier one. Nothing was changed"
            ) from error
        return damage

    def discard_after(self, step: int) -> None:
        """Sets checkpoints newer than ``step`` aside, in ``<directory>_damaged``: a resumed run writes them again.

        They are not deleted: what this version cannot read another one may.
        """
        sharding.wait_for_all("before checkpoints are set aside")
        aside = self._directory.with_name(self._directory.name + "_damaged")
        for newer in [s for s in self.steps() if s > step] if sharding.is_main() else []:
            files.move(self._directory / str(newer), _free_name(aside / str(newer)))
        sharding.wait_for_all("checkpoints were set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for what was started and lets go of the directory."""
        if self._failed:  # orbax would raise the same again
            return
        with contextlib.closing(self._manager):
            self.wait()


class _Damaged(Exception):
    """A checkpoint that differs from what was saved, and how."""


def _shapes(state: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _size_and_digest(path: paths.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        if path.name == STAMPED:
            return 0, str(sorted(json.load(file)["item_handlers"]))
        return files.size(path), _digest(file)


def _digest(file: IO[Any]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _damage(folder: paths.Path, within: str = "") -> str | None:
    """Difference of a checkpoint from what was saved, in words; None where nothing shows it. Raises OSError."""
    folder.stat()  # where all of it has gone, so may have the file system
    for item in ("state", "meta"):
        try:
            (folder / item).stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{item} is missing"
    try:
        text = (folder / FILES).read_bytes()
    except FileNotFoundError:  # written by an earlier version
        return None
    try:
        record = {str(name): (int(size), str(digest)) for name, (size, digest) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        # it was whole when the checkpoint got its name; where all else is read, nothing is lost with it
        return None if within else f"{FILES} is damaged"
    for name, expected in record.items():
        if not name.startswith(within):
            continue
        try:
            found = _size_and_digest(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
        except (ValueError, KeyError, TypeError, RecursionError):  # of the one that is parsed
            return f"{name} is damaged"
        if found != expected:
            return f"{name} has changed"
    return None


def _free_name(path: paths.Path) -> paths.Path:
    """``path``, or the first of ``path.1``, ``path.2``, ... where nothing is."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{n}") for n in itertools.count(1)))
    return next(name for name in names if not files.lexists(name))
