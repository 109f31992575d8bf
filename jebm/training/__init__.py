"""Training any `Method`: the loop, checkpoints, metrics."""

from jebm.runs.checkpoints import CheckpointNotRead as CheckpointNotRead
from jebm.runs.checkpoints import CheckpointNotWritten as CheckpointNotWritten
from jebm.runs.checkpoints import Checkpoints as Checkpoints
from jebm.runs.checkpoints import NoCheckpoint as NoCheckpoint
from jebm.runs.state import TrainState as TrainState
from jebm.training.loop import Diverged as Diverged
from jebm.training.loop import train as train
