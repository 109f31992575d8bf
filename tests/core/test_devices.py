"""Eight simulated devices: the same chains, really spread, and no traffic between the devices."""

import os
import subprocess
import sys
import textwrap

from helpers import ROOT

SCRIPT = textwrap.dedent(
    """
    import warnings
    import jax, jax.numpy as jnp, numpy as np
    import jebm
    from jebm.mcmc import chains

    warnings.simplefilter("error")
    assert jax.device_count() == 8
    mesh = jebm.sharding.make_mesh()
    assert mesh.size == 8
    key = jax.random.key(3)
    x = jax.random.normal(jax.random.key(1), (4096, 3))

    def sampled(kernel, mesh, num_steps=5):
        return jebm.sample_chains(key, kernel, x, num_steps, positions_every=2, mesh=mesh)

    energy = jebm.energy.gaussian(jnp.array([1.0, -2.0, 0.5]), jnp.array([1.6, 0.7, 3.0]))
    kernel = jebm.langevin(energy, 0.1, 0.6)
    one, spread = sampled(kernel, None), sampled(kernel, mesh)
    np.testing.assert_array_equal(one[0].position, spread[0].position)
    np.testing.assert_array_equal(one[1]["position"], spread[1]["position"])
    # sums within an example may be ordered otherwise
    np.testing.assert_allclose(one[1]["energy"], spread[1]["energy"], rtol=1e-5, atol=1e-6)
    for leaf in jax.tree.leaves(spread):
        assert len(leaf.sharding.device_set) == 8, leaf.sharding
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {512}
    assert len(one[0].position.sharding.device_set) == 1

    alone = jebm.sample(jebm.chain_keys(key, 4096)[4095], kernel, x[4095], 5)[0]
    np.testing.assert_array_equal(alone.position, spread[0].position[4095])

    def network(weights, x):
        return jnp.sum(jnp.tanh(x @ weights[0]) @ weights[1]) + 0.5 * jnp.sum(x**2)

    weights = [jax.random.normal(k, s) for k, s in zip(jax.random.split(key), ((3, 16), (16, 4)))]
    bound = jebm.energy.bind(network, jax.device_put(weights, jebm.sharding.replicated(mesh)))
    np.testing.assert_allclose(
        sampled(jebm.langevin(bound, 0.1), mesh)[0].position,
        sampled(jebm.langevin(jebm.energy.bind(network, weights), 0.1), None)[0].position,
        rtol=1e-4, atol=1e-5,
    )

    keys, placed = jebm.sharding.shard_batch((jebm.chain_keys(key, 4096), x), mesh)
    counts = chains._counts(5, 0, 1, 2)
    program = chains._sample_chains_jitted.lower(keys, kernel, placed, None, counts).compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program

    assert jebm.sharding.make_mesh(4).size == 4

    # a number that 8 does not divide: the same chains
    twelve, info = jebm.sample_chains(key, kernel, x[:12], 5, mesh=mesh)
    alone, alone_info = jebm.sample_chains(key, kernel, x[:12], 5)
    np.testing.assert_array_equal(twelve.position, alone.position)
    assert info["energy"].shape == alone_info["energy"].shape
    print("passed")
    """
)


def test_chains_on_eight_devices():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "passed"
