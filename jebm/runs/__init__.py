"""Run directories: files, checkpoints, loading, sampling."""

from jebm.runs.directory import RunDirectory as RunDirectory
from jebm.runs.load import Run as Run
from jebm.runs.load import load as load
