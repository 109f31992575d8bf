"""Images drawn by eight devices are those of one, also where eight does not divide their number."""

import os
import subprocess
import sys
import textwrap

from helpers import FAST_TO_COMPILE, ROOT

SCRIPT = textwrap.dedent(
    """
    import jax, jax.numpy as jnp, numpy as np
    from helpers import toy
    from jebm import methods, sharding
    from jebm.evaluation import generation
    from jebm.runs.drawing import draw, drawing

    method = methods.build(toy.ToyConfig())
    key = jax.random.key(1)
    state = jax.jit(method.init)(key, jnp.zeros((2, 8, 8, 1)))
    expected = jax.jit(method.generate, static_argnums=2)(key, state, 13)
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    state = jax.device_put(state, sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        drawn = drawing(method, mesh, 13)(key, state)
        text = jax.jit(lambda k, s: draw(method, mesh, 13, k, s)).lower(key, state).compile().as_text()
    assert drawn.shape == (13, 8, 8, 1) and drawn.sharding.is_fully_replicated
    np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-5)
    assert "f32[2,8,8,1]" in text  # 16 rows on 8 devices

    images = generation.generate_images(method, state, key, 21, batch_size=13)
    for i, part in enumerate((images[:13], images[13:])):
        batch = jax.jit(method.generate, static_argnums=2)(jax.random.fold_in(key, i), state, 13)
        near = np.abs(part.astype(int) - np.asarray(jnp.round((jnp.clip(batch, -1, 1) + 1) * 127.5))[: len(part)])
        assert near.max() <= 1
    assert images.shape == (21, 8, 8, 1)
    print("passed")
    """
)


def test_images_of_eight_devices():
    flags = f"--xla_force_host_platform_device_count=8 {FAST_TO_COMPILE}"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "passed"
