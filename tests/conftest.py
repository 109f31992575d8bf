"""Two simulated devices; programs compiled fast rather than to run fast, since each runs once or twice."""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib

import jax
import pytest

GOLDEN = pathlib.Path(os.environ.get("JEBM_GOLDEN", pathlib.Path(__file__).parents[2] / "shared/golden/open"))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def golden():
    """Loads a case by name (``golden("E1_resnet")``); skips where the golden numbers are not at hand."""
    import numpy as np

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"no golden numbers at {path} (environment variable JEBM_GOLDEN names their directory)")
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    return load
