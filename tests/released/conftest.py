import jax
import pytest


@pytest.fixture
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield
