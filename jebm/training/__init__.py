"""Training any `Method`: the loop, checkpoints, metrics."""

from jebm.training.checkpoints import CheckpointNotRead as CheckpointNotRead
from jebm.training.checkpoints import CheckpointNotWritten as CheckpointNotWritten
from jebm.training.checkpoints import Checkpoints as Checkpoints
from jebm.training.checkpoints import NoCheckpoint as NoCheckpoint
from jebm.training.loop import Diverged as Diverged
from jebm.training.loop import train as train
from jebm.training.state import TrainState as TrainState
