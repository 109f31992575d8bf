"""One iteration of the plain energy-based model against its rule and Adam written down, and what it generates."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.families import IMAGES, away_from_the_start, variant

from jebm import energy, langevin, learning, mcmc, methods
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.methods.ebm import model
from jebm.methods.ebm.network import ConvolutionalEnergy

KEY = jax.random.key(4)
T, ETA = 0.3, 0.2
SETTINGS = {
    "temperature": T, "step_size": ETA, "num_steps": 3, "generate_steps": 4, "max_drift": 0.5, "start_scale": 0.7,
    "rejuvenation": 0.4, "noise_scale": 0.2, "data_noise": 0.1, "energy_regularization": 0.05, "learning_rate": 1e-2,
    "ema_decay": 0.75,
}  # fmt: skip
RULES = typing.get_args(model.Rule)
NOISE = learning.gaussian_noise(jnp.zeros((8, 8, 1)), 0.7)


def kernel_of(energy, scale=None):
    return langevin(energy, ETA * T, max_drift=0.5)


def made(rule, **changes):
    config = variant("ebm", rule=rule, **{**SETTINGS, **changes})
    method = methods.build(config)
    state = method.init(jax.random.key(1), IMAGES)
    params = away_from_the_start(state.energy.params)
    return method, state._replace(energy=state.energy._replace(params=params)), ConvolutionalEnergy(2, 2)


def energy_of(network, params):
    return energy.bind(lambda params, x: network.apply({"params": params}, x) / T, params)


HELD = {"regularization": 0.05}
BY_HAND = {
    "contrastive_divergence": lambda s: ((kernel_of, 3), HELD),
    "persistent_contrastive_divergence": lambda s: (
        (s.bank, kernel_of, 3, NOISE.draw), {**HELD, "rejuvenation": 0.4},
    ),
    "short_run_likelihood": lambda s: ((kernel_of, 3, NOISE.draw), HELD),
    "recovery_likelihood": lambda s: ((kernel_of, 3, 0.2), HELD),
    "denoising_score_matching": lambda s: ((0.2,), {}),
    "sliced_score_matching": lambda s: ((), {}),
    "noise_contrastive_estimation": lambda s: ((NOISE,), {}),
    "energy_discrepancy": lambda s: ((0.2,), {}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_an_iteration_is_a_step_of_adam_on_the_rule(rule):
    method, state, network = made(rule)

    @jax.jit
    def by_hand(state):
        noise_key, rule_key = jax.random.split(KEY)
        data = IMAGES + 0.1 * jax.random.normal(noise_key, IMAGES.shape)
        given, named = BY_HAND[rule](state)
        loss = lambda params: getattr(learning, rule)(  # noqa: E731
            rule_key, energy_of(network, params), data, *given, **named
        )
        (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(state.energy.params)
        updates, _ = optax.adam(1e-2).update(gradients, state.energy.optimizer)
        params = optax.apply_updates(state.energy.params, updates)
        ema = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.energy.ema, params)
        return value, aux, params, ema

    value, aux, params, ema = by_hand(state)
    after, metrics = jax.jit(method.update)(KEY, state, IMAGES)
    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    close(after.energy.params, params)
    close(after.energy.ema, ema)
    assert (after.bank is None) == (rule != "persistent_contrastive_divergence")
    if after.bank is not None:
        close(after.bank, aux.bank)
    energies = aux.energy if rule.endswith("score_matching") else aux.energy_data
    np.testing.assert_allclose(metrics["energy_data"], T * energies, rtol=1e-4)


def test_it_generates_by_the_chain_of_training_from_the_averaged_weights():
    method, state, network = made("short_run_likelihood")
    state = state._replace(energy=state.energy._replace(ema=away_from_the_start(state.energy.ema)))
    start_key, chain_key = jax.random.split(KEY)
    starts = jax.vmap(NOISE.draw)(mcmc.chain_keys(start_key, 3))
    kernel = kernel_of(energy_of(network, state.energy.ema))
    ends = mcmc.sample_chains(chain_key, kernel, starts, 4)[0].position
    np.testing.assert_allclose(jax.jit(method.generate, static_argnums=2)(KEY, state, 3), ends, atol=1e-4)
    f = jax.vmap(lambda x: T * method.energy(state)(x))
    expected = jnp.mean(f(method.generate(KEY, state, 4))) - jnp.mean(f(IMAGES))
    np.testing.assert_allclose(method.scores(KEY, state, IMAGES)["energy_gap"], expected, atol=1e-4)


def test_the_bank_starts_at_noise_and_divides_by_the_batch():
    _, state, _ = made("persistent_contrastive_divergence", bank_size=403)
    assert state.bank.size == 400
    values = np.asarray(state.bank.entries).ravel()
    assert abs(values.std() / 0.7 - 1) < 5 / np.sqrt(2 * values.size)
    assert isinstance(state.bank, bank.Bank)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 10}, r"image_size=10 does not divide by 2 \*\* num_halvings = 4: lower num_halvings"),
        ({"rejuvenation": 1.5}, "rejuvenation=1.5 is out of range: it is a probability"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(ConfigError, match=words):
        variant("ebm", **changes)
