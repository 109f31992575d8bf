"""Parity of the latent RealNVP with numbers from the authors' own helper; sizes and constants from the file."""

import jax
import numpy as np
import pytest

from released.latent_flow import LatentFlow

pytestmark = pytest.mark.golden


@pytest.fixture(params=["relu", "swish"])
def case(golden, request):
    numbers = golden("E7_flow")
    flow = LatentFlow(
        int(numbers["cfg/num_latent"]), int(numbers["cfg/num_block"]), int(numbers["cfg/fc_dim"]), request.param,
        float(numbers["cfg/clamp"]),
    )  # fmt: skip
    own = {n.removeprefix(request.param + "/"): a for n, a in numbers.items() if n.startswith(request.param + "/")}
    variables = {
        "params": tree(own, "w", lambda leaf: leaf not in ("mean", "var")),
        "batch_stats": tree(own, "w", lambda leaf: leaf in ("mean", "var")),
    }
    template = jax.eval_shape(flow.init, jax.random.key(0), own["in/z"])
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(template))
    return flow, variables, own


def tree(numbers, group, wanted):
    result = {}
    for name, array in numbers.items():
        first, _, rest = name.partition("/")
        *path, leaf = rest.split("/")
        if first == group and wanted(leaf):
            node = result
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = array
    return result


def close(actual, expected, tolerance=1e-5):
    error = np.abs(np.asarray(actual) - expected) / np.maximum(1.0, np.abs(expected))
    assert error.max() <= tolerance


def test_forward_and_inverse(case):
    flow, variables, numbers = case
    z, log_determinant = flow.apply(variables, numbers["in/z"])
    close(z, numbers["out/forward"])
    close(log_determinant, numbers["out/logdet"])
    x, log_determinant = flow.apply(variables, numbers["in/z"], method="inverse")
    close(x, numbers["out/inverse"])
    close(log_determinant, numbers["out/logdet_inverse"])


def test_the_permutations(case):
    flow, variables, numbers = case
    for row, permutation in zip(numbers["perm"], flow.bind(variables).permutations, strict=True):
        np.testing.assert_array_equal(row, permutation)


def test_train_mode(case):
    flow, variables, numbers = case
    (z, log_determinant), updated = flow.apply(variables, numbers["in/z"], train=True, mutable=["batch_stats"])
    close(z, numbers["out/forward_train"], 5e-5)
    close(log_determinant, numbers["out/logdet_train"], 5e-5)
    expected = tree(numbers, "stats1", lambda leaf: True)
    jax.tree.map(lambda a, b: close(a, b, 5e-5), updated["batch_stats"], expected)
