"""The files of a run."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jebm import files, paths
from jebm.config import Config, from_dict, to_dict
from jebm.errors import ConfigError

__all__ = ["RunDirectory"]


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files, and its configuration."""

    path: paths.Path

    @property
    def config(self) -> paths.Path:
        """``config.json``, fully resolved."""
        return self.path / "config.json"

    @property
    def generator(self) -> paths.Path:
        """``generator.json``: what the frozen generator is of, in a run that has one from another run."""
        return self.path / "generator.json"

    @property
    def metrics(self) -> paths.Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def starts(self) -> paths.Path:
        """``starts.json``: when and on what it was trained, see `jebm.runs.starts`."""
        return self.path / "starts.json"

    @property
    def checkpoints(self) -> paths.Path:
        """``checkpoints/<step>/``."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> paths.Path:
        """``samples/step_*.png``."""
        return self.path / "samples"

    @property
    def evaluation(self) -> paths.Path:
        """``evaluation/*.json``."""
        return self.path / "evaluation"

    @property
    def report(self) -> paths.Path:
        """``report.html``."""
        return self.path / "report.html"

    def write_config(self, config: Config) -> None:
        """Writes ``config.json``, whole or not at all."""
        _write(self.config, to_dict(config))

    def write_generator(self, configs: Sequence[Config], fingerprint: str) -> None:
        """Writes ``generator.json``, whole or not at all; see `jebm.runs.run.FrozenGenerator`."""
        _write(self.generator, {"fingerprint": fingerprint, "configs": [to_dict(config) for config in configs]})

    def read_generator(self) -> tuple[tuple[Config, ...], str] | None:
        """Content of ``generator.json``; None without one.

        Raises:
            ConfigError: a file that cannot be read.
        """
        if not self.generator.is_file():
            return None
        try:
            tree = json.loads(self.generator.read_text())
            configs = tuple(from_dict(config) for config in tree["configs"])
            if not configs:
                raise ValueError("it holds no configuration")
            return configs, str(tree["fingerprint"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.generator} cannot be read: {error}") from None

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


def _write(path: paths.Path, tree: Any) -> None:
    with files.whole(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n")
