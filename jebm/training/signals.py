"""Signals that stop a training between two steps."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax

__all__ = ["StopSignal"]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """Turns SIGTERM, SIGINT and SIGHUP into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.received = False

    def agreed(self, step: int) -> bool:
        """Whether to stop after ``step``: all processes stop at the same one, also if only one got the signal."""
        if jax.process_count() == 1:
            return self.received
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(step))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within; SIGHUP stays ignored under nohup."""

        def note(number: int, frame: Any) -> None:
            self.received = True
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)

        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in STOPPING if number != signal.SIGHUP or not nohup]
        if jax.process_count() > 1:  # the runtime's own handler receives SIGTERM and informs all processes
            numbers = [number for number in numbers if number != signal.SIGTERM]
        try:
            old = {number: signal.signal(number, note) for number in numbers}
        except ValueError:  # not the main thread, which then keeps its own handlers
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
