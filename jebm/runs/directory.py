"""The files of a run."""

import dataclasses
import json
import pathlib

from jebm import files
from jebm.config import Config, from_dict, to_dict
from jebm.errors import ConfigError

__all__ = ["RunDirectory"]


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """``config.json``, fully resolved."""
        return self.path / "config.json"

    @property
    def metrics(self) -> pathlib.Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """``checkpoints/<step>/``."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> pathlib.Path:
        """``samples/step_*.png``."""
        return self.path / "samples"

    @property
    def evaluation(self) -> pathlib.Path:
        """``evaluation/*.json``."""
        return self.path / "evaluation"

    @property
    def report(self) -> pathlib.Path:
        """``report.html``."""
        return self.path / "report.html"

    def write_config(self, config: Config) -> None:
        """Writes ``config.json``, whole or not at all."""
        with files.whole(self.config) as temporary:
            temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")

    def read_config(self) -> Config:
        """The configuration of the run.

        Raises:
            ConfigError: no run here, or a ``config.json`` that cannot be read.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} is no run directory (it has no config.json): train one with 'jebm train'")
        try:
            return from_dict(json.loads(self.config.read_text()))
        except ConfigError:
            raise
        except (ValueError, RecursionError) as error:  # no JSON, or brackets too deep
            raise ConfigError(f"{self.config} cannot be read: {error}") from None
