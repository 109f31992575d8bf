"""Steepest descent in steps of one length: its formula, and parity with numbers from the authors' own code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import head_of

from jebm import energy
from released.normalized_descent import normalized_descent


def test_steps_have_the_length_s():
    slope = jax.random.normal(jax.random.key(0), (6, 5, 3))
    moved = normalized_descent(lambda x: jnp.sum(slope * x), jnp.zeros((6, 5, 3)), 5, 0.02)
    np.testing.assert_allclose(moved, -5 * 0.02 * slope / jnp.linalg.norm(slope), rtol=1e-5)


@pytest.mark.golden
def test_the_chain_of_the_release(golden, highest_precision):
    case, run = golden("E5_sgld_det"), "normalised5"
    start = case[f"{run}/in/x0"]
    module, params = head_of(case, image=start.shape[1:])
    head = energy.bind(lambda params, x: module.apply({"params": params}, x), params)
    tau, step_size = float(case[f"{run}/cfg/tau"]), float(case[f"{run}/cfg/step_size"])
    for row, k in enumerate(case[f"{run}/out/x_index"]):
        if k == 0:
            continue
        moved = jax.vmap(lambda x, k=int(k): normalized_descent(lambda x: head(x) / tau, x, k, step_size))(start)
        expected = case[f"{run}/out/x"][row]
        bound = 2e-6 + 2e-5 * k * np.abs(expected - start).max()
        np.testing.assert_allclose(moved, expected, rtol=0, atol=bound)
