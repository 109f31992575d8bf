"""One iteration of energy matching against its losses and Adam written down, in both phases; samples; the field."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.families import IMAGES, away_from_the_start, variant

from jebm import energy, langevin, mcmc, methods
from jebm.errors import ConfigError
from jebm.learning import matching
from jebm.methods.matching.network import DensePotential, Potential

KEY = jax.random.key(4)
SETTINGS = {
    "warmup_steps": 10, "contrastive_weight": 0.3, "temperature": 0.2, "ramp_start": 0.5, "step_size": 0.4,
    "num_steps": 4, "generate_steps": 5, "learning_rate": 1e-2, "ema_decay": 0.3,
}  # fmt: skip
NETWORKS = {"convolutions": Potential(2, 2, 1, 4), "dense": DensePotential(2, 1)}


def made(step, network="dense"):
    method = methods.build(variant("energy_matching", network=network, **SETTINGS))
    state = method.init(jax.random.key(1), IMAGES)
    trained = state.potential._replace(params=away_from_the_start(state.potential.params))
    return method, state._replace(potential=trained, step=jnp.int32(step)), NETWORKS[network]


def potential_of(network, params):
    return energy.bind(lambda params, x: network.apply({"params": params}, x), params)


def normals(key):
    return jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(mcmc.chain_keys(key, 4))


@pytest.mark.parametrize("step", [9, 10])
def test_an_iteration_is_a_step_of_adam_on_the_losses_of_its_phase(step):
    method, state, network = made(step)
    contrasted = step == 10

    @jax.jit
    def by_hand(state):
        path_key, noise_key, chain_key = jax.random.split(KEY, 3)
        paths = matching.transport_paths(path_key, IMAGES, lambda key: jax.random.normal(key, (8, 8, 1)), 0.5)
        negatives = starts = normals(noise_key)
        if contrasted:
            starts = jnp.concatenate([IMAGES[:2], starts[2:]])
            table, keys = jnp.array([0.0, 0.0, 0.12, 0.2]), mcmc.chain_keys(chain_key, 4)  # at t = 0, 0.4, 0.8, 1.2
            of = potential_of(network, state.potential.params)
            ends = [
                mcmc.sample(
                    keys[i], langevin(of, 0.4, mcmc.table_schedule(jnp.full(4, 0.2) if i < 2 else table)), starts[i], 4,
                    trace=(),
                )[0].position
                for i in range(4)
            ]  # fmt: skip
            negatives = jnp.stack(ends)
        weights = paths.weights if contrasted else jnp.ones(4)

        def loss(params):
            of = potential_of(network, params)
            slopes = jax.vmap(jax.grad(of))(paths.points)
            flow = jnp.mean(weights * jnp.mean(jnp.square(slopes + paths.velocities), (1, 2, 3)))
            means = [jnp.mean(jax.vmap(of)(x)) for x in (IMAGES, negatives)]
            return flow + (0.3 * (means[0] - means[1]) if contrasted else 0.0), (flow, *means)

        (value, (flow, *means)), gradients = jax.value_and_grad(loss, has_aux=True)(state.potential.params)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, b2=0.95))
        updates, _ = optimizer.update(gradients, state.potential.optimizer)
        params = optax.apply_updates(state.potential.params, updates)
        decay = min(0.3, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.potential.ema, params)
        metrics = {
            "loss": value, "flow_loss": flow, "energy_data": means[0], "energy_negative": means[1],
            "energy_gradient_norm": optax.tree.norm(gradients),
            "chain_displacement": jnp.sqrt(jnp.mean(jnp.square(negatives - starts))),
        }  # fmt: skip
        return metrics, params, ema

    metrics, params, ema = by_hand(state)
    after, found = jax.jit(method.update)(KEY, state, IMAGES)
    for name, expected in metrics.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4))
    close(after.potential.params, params)
    close(after.potential.ema, ema)
    assert int(after.step) == step + 1
    assert (float(found["chain_displacement"]) > 0) == contrasted


def test_it_generates_along_the_averaged_potential_with_the_temperatures_of_training():
    method, state, network = made(0)
    state = state._replace(potential=state.potential._replace(ema=away_from_the_start(state.potential.ema)))
    start_key, chain_key = jax.random.split(KEY)
    at = mcmc.table_schedule(jnp.array([0.0, 0.0, 0.12, 0.2, 0.2]))
    kernel = langevin(potential_of(network, state.potential.ema), 0.4, at)
    ends = mcmc.sample_chains(chain_key, kernel, normals(start_key), 5, trace=())[0].position
    images = jax.jit(method.generate, static_argnums=2)(KEY, state, 4)
    np.testing.assert_allclose(images, np.clip(ends, -1, 1), atol=1e-4)
    assert np.ptp(ends) > 2.0  # something was clipped
    v = jax.vmap(lambda x: 0.2 * method.energy(state)(x))
    np.testing.assert_allclose(
        v(IMAGES), jax.vmap(potential_of(network, state.potential.ema))(IMAGES), rtol=1e-5, atol=1e-5
    )
    gap = method.scores(KEY, state, IMAGES)["energy_gap"]
    np.testing.assert_allclose(gap, jnp.mean(v(images)) - jnp.mean(v(IMAGES)), rtol=1e-3, atol=1e-4)
    assert (method.chain.step_size, method.temperature, method.evaluations_per_image) == (0.4, 0.2, 5)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_field_is_free_of_curl(network):
    """Its Jacobian is symmetric: one potential, not a vector field of a network."""
    _, state, layers = made(0, network)
    of = potential_of(layers, state.potential.params)
    jacobian = np.asarray(jax.jit(jax.jacrev(jax.grad(of)))(IMAGES[0])).reshape(64, 64)
    assert np.abs(jacobian).max() > 0
    np.testing.assert_allclose(jacobian, jacobian.T, rtol=0, atol=1e-5 * np.abs(jacobian).max())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 10}, r"image_size=10 does not divide by 2 \*\* num_halvings = 4: lower num_halvings"),
        ({"num_steps": 1}, "num_steps=1 of step_size=0.6 end before time 1, .*: set num_steps above 1.66"),
        ({"generate_steps": 1}, "generate_steps=1 of step_size=0.6 end before time 1"),
        ({"ramp_start": 1.2}, "ramp_start=1.2 is out of range"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(ConfigError, match=words):
        variant("energy_matching", **changes)
