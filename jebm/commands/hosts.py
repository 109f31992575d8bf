"""Generation by the devices of all processes: process 0 does a verb's work, and the others draw with it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jebm.commands import common
from jebm.errors import ConfigError

if TYPE_CHECKING:
    from jax import Array

    from jebm.methods.base import Weights
    from jebm.runs.drawing import Draw
    from jebm.runs.run import Run
    from jebm.sharding import Ask

__all__ = ["drawing", "serving"]


def drawing(trained: "Run", weights: "Weights | None", ask: "Ask | None") -> "Draw | None":
    """`Draw` of a run in process 0, where there are others; None where there are none.

    Args:
        trained: the run, in a place that all processes see.
        weights: raw weights or their moving average; None: those that the family generates with.
        ask: see `jebm.sharding.led`.
    """
    if ask is None:
        return None
    import jax

    own = _batches(trained, weights)
    run = {
        "model": trained.meta.get("name", str(trained.directory.path)), "step": trained.step, "weights": weights,
        "versions": _versions(), "config": _hash(trained),
    }  # fmt: skip

    def draw(key: "Array", i: int, size: int) -> Any:
        ask({"run": run, "key": jax.random.key_data(key).tolist(), "i": i, "size": size})
        return own(key, i, size)

    return draw


def serving() -> Callable[[dict[str, Any]], Callable[[], object]]:
    """What the other processes serve: the batches that `drawing` asks for."""
    held: dict[str, Any] = {}

    def serve(request: dict[str, Any]) -> Callable[[], object]:
        import jax
        import jax.numpy as jnp

        run = request["run"]
        if held.get("run") != run:
            held.clear()
            if run["versions"] != _versions():
                raise ConfigError(f"the versions here are {_versions()}, those of process 0 {run['versions']}")
            trained = common.load(run["model"], run["step"])
            if run["config"] != _hash(trained):
                raise ConfigError(f"{run['model']} holds another run than that of process 0")
            held.update(run=run, draw=_batches(trained, run["weights"]))
        key = jax.random.wrap_key_data(jnp.asarray(request["key"], "uint32"))
        return lambda: held["draw"](key, request["i"], request["size"])

    return serve


def _batches(trained: "Run", weights: "Weights | None") -> "Draw":
    from jebm import sharding
    from jebm.evaluation.run import run_weights
    from jebm.runs.drawing import batches

    return batches(trained.method, run_weights(trained, weights)[0], sharding.make_mesh())


def _hash(trained: "Run") -> str:
    from jebm.config import config_hash

    return config_hash(trained.config)


def _versions() -> dict[str, str]:
    from jebm.training.identity import versions

    return versions()
