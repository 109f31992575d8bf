"""What a TPU's compiler makes of layers that have a program for each platform: XLA's own, where there is no TPU."""

import collections
import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest
from helpers import FAST_TO_COMPILE, ROOT

from jebm.planning import hlo

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from jebm.planning import topology
    devices = topology("v5e:2x2").devices
    import jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from jebm.networks.convolution import conv_general_dilated
    from jebm.networks.layers import average_pool

    def energy(kernel, x):  # 8x8, wide: Winograd's on a CPU; 2x2, smaller than the kernel: its product over patches
        for _ in range(2):
            x = average_pool(jnp.tanh(conv_general_dilated(x, kernel, (1, 1), "SAME")))
        return jnp.sum(jnp.tanh(conv_general_dilated(x, kernel, (1, 1), "SAME")))

    def chain(kernel, x):
        return jax.lax.scan(lambda x, _: (x - jax.grad(energy, 1)(kernel, x), None), x, length=4)[0]

    texts = {}
    for platform, found in (("tpu", devices), ("cpu", jax.devices()[:1])):
        mesh = Mesh(found, ("data",))
        place = lambda shape, *axes: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        program = jax.jit(chain).lower(place((3, 3, 64, 64)), place((8, 8, 8, 64), "data"))
        texts[platform] = program.compile().as_text()
    print(json.dumps(texts))
    """
)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
def test_a_tpu_s_chain_has_neither_a_cpu_s_algorithms_nor_a_choice_left():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300,
        env={**os.environ, "XLA_FLAGS": FAST_TO_COMPILE, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    texts = json.loads(result.stdout)
    operations = {}
    for platform, text in texts.items():
        lines = [one for one in hlo.executed(text) if one.looped]
        operations[platform] = collections.Counter(one.line.opcode for one in lines)
        assert hlo.products(hlo.executed(text), looped=True)
    # a CPU's program has what a TPU's must not have: the names are those that would be seen
    assert "_winograd" in texts["cpu"]
    assert "_winograd" not in texts["tpu"]
    assert operations["tpu"]["conditional"] == 0
    assert operations["cpu"]["reduce-window"] == 0
    assert operations["tpu"]["reduce-window"] >= 2  # two pools
    assert operations["tpu"]["convolution"] >= 5
