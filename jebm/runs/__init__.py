"""Run directories: files, checkpoints, loading, sampling."""

from jebm.runs.directory import RunDirectory as RunDirectory
from jebm.runs.run import Run as Run
from jebm.runs.run import load as load
