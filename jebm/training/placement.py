"""Placement of a training's batches and state: the mesh, and a sharding for every array."""

from collections.abc import Sequence

import jax

from jebm import sharding
from jebm.config import Config
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.runs.state import TrainState

__all__ = ["mesh_of", "placed"]


def mesh_of(config: Config, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh that a configuration asks for, over all devices, or those given.

    Raises:
        ConfigError: devices that ``training.fsdp`` does not divide, or that do not divide ``data.batch_size``.
    """
    try:
        mesh = sharding.make_mesh(fsdp=config.training.fsdp, devices=devices)
    except ValueError as error:
        raise ConfigError(f"training.fsdp={config.training.fsdp}: {error}") from None
    parts = config.training.microbatches
    if config.data.batch_size % (mesh.size * parts):
        over = f"{mesh.size} devices" + (f" in {parts} microbatches" if parts > 1 else "")
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} does not divide over {over}: take a multiple of "
            f"{mesh.size * parts}"
        )
    return mesh


def placed(abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """The abstract state with its shardings: banks like a batch, large parameters split, the rest replicated."""
    split = sharding.parameter_sharding(abstract, mesh)
    banks = bank.placement(abstract, sharding.batch_sharding(mesh), sharding.replicated(mesh))
    choose = lambda a, s, b: jax.ShapeDtypeStruct(  # noqa: E731
        a.shape, a.dtype, sharding=s if b.is_fully_replicated else b
    )
    placed: TrainState = jax.tree.map(choose, abstract, split, banks)
    return placed
