"""Typed, validated configuration.

A configuration is a tree of frozen dataclasses. Each ``configs/**.py`` has one function ``get_config() -> Config``;
``--set key.path=value`` replaces one field, parsed by the field's type; all replacements are made at once, and every
check runs again on the result. The run directory keeps the resolved tree as JSON.
"""

import dataclasses
import hashlib
import json
import pathlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from jebm import methods
from jebm.errors import ConfigError, check, nearest, shown
from jebm.typed import build, one_line, parsed, replaced

__all__ = [
    "Config", "DataConfig", "EvaluationConfig", "RecoveryConfig", "TrainingConfig", "from_dict", "load_file", "named",
    "override", "to_dict",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, and their preprocessing.

    Attributes:
        source: ``"digits"`` (bundled), ``"npz:PATH"``, ``"folder:PATH"``, ``"hf:NAME"``, ``"tfds:NAME[:SPLIT]"`` or
            ``"points:NAME"`` (two-dimensional sets).
        crop: the square of an image that is kept before it is resized to the method's size (`jebm.data.geometry`);
            ``"auto"`` is the set's own for ``tfds:``, and the whole image for the others.
        batch_size: images per training step, over all devices.
        workers: processes that decode images which do not fit in memory; 0 for threads. Batches do not depend on it.
        flip: mirror left-right with probability one half.
        dequantize: add uniform noise of one grey level.
        validation: share of the training images that is set aside, always the same ones, for
            ``jebm evaluate --reference validation``: tune on these, and look at test images once.
    """

    source: str = "digits"
    crop: str = "auto"
    batch_size: int = 128
    workers: int = 0
    flip: bool = False
    dequantize: bool = False
    validation: float = 0.0

    def __post_init__(self) -> None:
        from jebm.data import DataError, Geometry, check_name

        check(self, batch_size=">=1", workers=">=0", validation="in [0, 1)")
        for key, parse in (("source", check_name), ("crop", lambda crop: crop == "auto" or Geometry(crop, 1))):
            try:
                parse(getattr(self, key))
            except DataError as error:
                raise ConfigError(f"data.{key}={getattr(self, key)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """Recovery from divergence (`jebm.training.recovery` states the rules).

    Attributes:
        max_attempts: recoveries before the run stops; 0 stops at the first divergence.
        learning_rate_factor: factor of every learning rate of the method at each recovery.
        step_size_factor: factor of every Langevin step size of the method at each recovery.
        energy_regularization: added to the method's ``energy_regularization`` at each recovery.
        gap_deviations: largest distance of the energy gap from its median, in median deviations; 0 for off.
        ratio: largest factor between chain displacements or gradient norms and their median, up or down; 0 for off.
        stuck_lines: logged lines in which the gap may move away from 0 without a break; 0 for off.
        update_ratio: largest change of a network in one step, relative to its norm; 0 for off.
        absolute: also apply the rules that need no history (`jebm.training.recovery.senseless`).
    """

    max_attempts: int = 8
    learning_rate_factor: float = 0.5
    step_size_factor: float = 1.0
    energy_regularization: float = 0.0
    gap_deviations: float = 50.0
    ratio: float = 50.0
    stuck_lines: int = 30
    update_ratio: float = 0.3
    absolute: bool = True

    def __post_init__(self) -> None:
        check(
            self, max_attempts=">=0", learning_rate_factor="in (0, 1]", step_size_factor="in (0, 1]",
            energy_regularization=">=0", gap_deviations=">=0", ratio=">=0", stuck_lines=">=0",
            update_ratio=">=0",
        )  # fmt: skip
        if 0 < self.ratio <= 1:
            raise ConfigError(f"ratio={self.ratio} is out of range: it must be 0, for off, or above 1")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The training loop.

    Attributes:
        num_steps: training iterations.
        log_every: steps between lines of ``metrics.jsonl``.
        sample_every: steps between sample grids; 0 for none.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep_checkpoints: number of the newest that are kept.
        num_samples: images in a sample grid.
        evaluate_at_end: score the model when training ends (`jebm evaluate`).
        fsdp: devices over which large parameters are split; batches are always split over all devices.
        microbatches: parts of a batch whose gradients are added up, for a batch that does not fit into memory; the
            result is that of 1 up to rounding. Refused for methods that need the whole batch.
        matmul_precision: of products and convolutions in training, JAX's names: on a TPU ``"default"`` multiplies
            float32 in bfloat16, on a recent NVIDIA GPU in TF32; ``"highest"`` in float32 on each device.
        writers: where metrics and sample grids go besides the run directory's own files: "tensorboard" (event files in
            its folder ``tensorboard``), "wandb" (Weights & Biases).
        seed: of initialisation, data order and every draw.
        recovery: what to do when the run diverges.
    """

    num_steps: int = 1000
    log_every: int = 50
    sample_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    num_samples: int = 64
    evaluate_at_end: bool = False
    fsdp: int = 1
    microbatches: int = 1
    matmul_precision: Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"] = "default"
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: int = 0
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=1", log_every=">=1", sample_every=">=0", checkpoint_every=">=1",
            keep_checkpoints=">=1", num_samples=">=1", fsdp=">=1", microbatches=">=1", seed="in [0, 2**63)",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings of `jebm evaluate`.

    Attributes:
        num_samples: generated images per score.
        batch_size: images per call.
        seed: of the draws.
    """

    num_samples: int = 10_000
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, num_samples=">=2", batch_size=">=1", seed="in [0, 2**63)")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: the configuration of a method, and those that every experiment has.

    Attributes:
        method: the model family's configuration; its class determines the family (`jebm.methods.FAMILIES`).
        data: `DataConfig`.
        training: `TrainingConfig`.
        evaluation: `EvaluationConfig`.
    """

    method: Any
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def named() -> dict[str, pathlib.Path]:
    """The configurations that come with the library, by name, such as ``digits/ec_vae``.

    Those of ``configs/`` in a clone; an installed library carries that folder.
    """
    package = pathlib.Path(__file__).parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    files = sorted(folder.glob("*/*.py")) if folder else []
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def load_file(path: str | pathlib.Path) -> Config:
    """The configuration that a Python file returns from its function ``get_config()``; its types are checked.

    Args:
        path: of the file; where there is none of it, the name of a configuration that comes with the library:
            ``digits/ec_vae``, or ``configs/digits/ec_vae.py`` as it is called in a clone.

    Raises:
        ConfigError: no such file, a file that does not run (or ends the program), or one without
            ``get_config() -> Config``.
    """
    path = _found(pathlib.Path(path))
    namespace: dict[str, Any] = {"__name__": "jebm_config", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102
        if not callable(namespace.get("get_config")):
            raise ConfigError("it has no function get_config(), so it is no configuration file")
        config = namespace["get_config"]()
    except ConfigError as error:
        raise ConfigError(f"{path}{_line_of(error, path)}: {error}") from None
    except (Exception, SystemExit) as error:  # the code of a user may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{path} does not run{_line_of(error, path)}: {reason}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a jebm.config.Config")
    try:
        return from_dict(to_dict(config))  # dataclasses check no types
    except (TypeError, ValueError) as error:  # TypeError: what JSON cannot hold
        raise ConfigError(f"{path}: {one_line(error)}") from None


def _found(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    ours = named()
    name = path.with_suffix("").as_posix().removeprefix("configs/")
    if name in ours and path.suffix in ("", ".py"):
        return ours[name]
    like_files = [f"configs/{other}.py" for other in ours]
    hint = nearest(str(path), like_files if path.suffix else ours)
    raise ConfigError(f"no configuration file {str(path)!r}{hint}; see 'jebm configs'")


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """``", line 7"``: the last line of the file in the traceback, if any."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def override(config: Config, assignments: Iterable[str]) -> Config:
    """``config`` with ``key.path=value`` assignments, each parsed by the type of its field.

    All replacements are made at once and checked together, so their order does not matter, except that the last value
    of a key wins.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.

    Examples:
        >>> config = jebm.config.Config(jebm.methods.ECVAEConfig())
        >>> jebm.config.override(config, ["training.num_steps=10", "data.batch_size=16"]).training.num_steps
        10
    """
    given: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {shown(assignment)}: write key.path=value")
        given[key] = text
    values = {key: parsed(config, key.split("."), text, key) for key, text in given.items()}
    return replaced(config, given, values, "") if values else config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON types, with the family's name in ``method.family``.

    Examples:
        >>> config = jebm.config.Config(jebm.methods.ECVAEConfig())
        >>> jebm.config.to_dict(config)["method"]["family"]
        'ec_vae'
        >>> jebm.config.from_dict(jebm.config.to_dict(config)) == config
        True
    """
    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    tree["method"] = {"family": methods.family_of(config.method), **tree["method"]}
    return tree


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown family, an unknown or missing key, or a value out of range.
    """
    groups = {"method", *(field.name for field in dataclasses.fields(Config))}
    if not isinstance(tree, Mapping) or set(tree) != groups or not all(isinstance(t, Mapping) for t in tree.values()):
        raise ConfigError(f"a configuration has the groups {', '.join(sorted(groups))}, and keys in each of them")
    method = dict(tree["method"])
    family = method.pop("family", None)
    if not isinstance(family, str) or family not in methods.FAMILIES:
        raise ConfigError(f"method.family={shown(family)}: expected one of {sorted(methods.FAMILIES)}")
    return Config(
        method=build(methods.FAMILIES[family][0], method, "method"),
        data=build(DataConfig, tree["data"], "data"),
        training=build(TrainingConfig, tree["training"], "training"),
        evaluation=build(EvaluationConfig, tree["evaluation"], "evaluation"),
    )


def config_hash(config: Config) -> str:
    """The hash of a resolved configuration, sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
