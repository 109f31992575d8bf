"""Readers of images whose worker dies."""

import os
import signal

import numpy as np


class Batches:
    """Numbered arrays, of which one kills the process that reads it, the first time."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 40

    def __getitem__(self, index):
        (self.folder / f"{index}").touch()
        if index == 25 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((2,), int(index))


class Deadly(Batches):
    """Arrays that no process survives reading."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)
