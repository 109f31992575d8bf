"""What lies where on a mesh of two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jebm import sharding


def shards(array):
    return sorted({shard.data.shape for shard in array.addressable_shards})


def test_a_mesh_has_a_data_axis_and_an_fsdp_axis():
    assert dict(sharding.make_mesh().shape) == {"data": 2, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 1, "fsdp": 2}
    assert dict(sharding.make_mesh(1).shape) == {"data": 1, "fsdp": 1}
    assert list(sharding.make_mesh(1).devices.flat) == jax.devices()[:1]


@pytest.mark.parametrize("fsdp", [1, 2])
def test_batches_are_spread_over_both_axes_in_their_order(fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    batch = {"x": np.arange(12.0).reshape(6, 2), "keys": jax.random.split(jax.random.key(0), 6)}
    placed = sharding.shard_batch(batch, mesh)
    assert shards(placed["x"]) == [(3, 2)]
    assert shards(placed["keys"]) == [(3,)]
    for device, rows in zip(mesh.devices.flat, (slice(0, 3), slice(3, 6)), strict=True):
        (shard,) = [shard for shard in placed["x"].addressable_shards if shard.device == device]
        np.testing.assert_array_equal(shard.data, batch["x"][rows])
    np.testing.assert_array_equal(sharding.local_rows(mesh, 6), np.arange(6))
    with pytest.raises(ValueError, match="a leading axis of 5 does not divide over 2 devices"):
        sharding.shard_batch(np.zeros((5, 2)), mesh)


def test_large_parameters_are_split_along_their_longest_axis_that_divides():
    mesh = sharding.make_mesh(fsdp=2)
    sizes = {"large": (4, 6, 5), "odd": (2, 3, 61), "indivisible": (11, 11), "small": (7, 17), "exact": (120,)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}
    specs = {name: where.spec for name, where in sharding.parameter_sharding(tree, mesh, smallest=120).items()}
    assert specs == {
        "large": PartitionSpec(None, "fsdp"), "odd": PartitionSpec("fsdp"), "indivisible": PartitionSpec(),
        "small": PartitionSpec(), "exact": PartitionSpec("fsdp"),
    }  # fmt: skip
    alone = sharding.parameter_sharding(tree, sharding.make_mesh(), smallest=120)
    assert all(where.is_fully_replicated for where in alone.values())


def test_what_a_program_draws_is_spread_where_it_is_asked_for():
    draw = lambda key: sharding.constrain_batch({"z": jax.random.normal(key, (6, 3))})["z"] * 2.0  # noqa: E731
    alone = jax.jit(draw)(jax.random.key(0))
    assert len(alone.sharding.device_set) == 1
    with jax.set_mesh(sharding.make_mesh()):
        spread = jax.jit(draw)(jax.random.key(0))
    assert shards(spread) == [(3, 3)]
    np.testing.assert_array_equal(spread, alone)
