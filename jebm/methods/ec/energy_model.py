"""The energy that calibrates a generator: network, spectral norm and optimiser in one small bundle.

Beside `calibration` this is all that a generator of any kind needs to be calibrated:

    model = EnergyModel(network)                                # one example in, a scalar out
    state = model.init(key, example)
    state = model.refresh(state)                                # once an iteration: a power iteration
    calibrated = calibrate(key, model.head(state), generated, settings)
    loss = own_loss + dual * calibration_loss(calibrated, generated)
    state, metrics = model.step(state, data, calibrated, settings.temperature)
    dual = dual_step(dual, calibration_loss(calibrated, generated), settings, generated[0].size)
"""

import dataclasses
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm.energy import Energy
from jebm.methods.base import Metrics
from jebm.methods.maximum_likelihood import contrastive_loss
from jebm.networks import spectral_norm

__all__ = ["EnergyModel", "EnergyState"]


class EnergyState(NamedTuple):
    """Parameters of f, singular vectors of its kernels (empty without spectral norm), Adam's state."""

    params: Any
    spectral: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class EnergyModel:
    """An energy ``E(x) = f(x)/τ`` that learns to tell data from calibrated samples.

    Attributes:
        network: f, a Linen module that maps a batch [n, *example] to [n] and one example to a scalar, each example on
            its own: no flattening of the first axis, no normalisation over the batch.
        learning_rate: Adam's.
        b1: Adam's first moment decay.
        b2: Adam's second moment decay.
        spectral_norm: normalise every kernel spectrally.
    """

    network: nn.Module
    learning_rate: float = 1e-4
    b1: float = 0.0
    b2: float = 0.9
    spectral_norm: bool = True

    def init(self, key: Array, example: Array) -> EnergyState:
        """A fresh state; ``example`` is one example, for its shape."""
        network_key, vector_key = jax.random.split(key)
        params = self.network.init(network_key, example[None])["params"]
        spectral = spectral_norm.init(vector_key, params) if self.spectral_norm else {}
        return EnergyState(params, spectral, self._optimizer().init(params))

    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.b1, b2=self.b2, eps=1e-8)

    def refresh(self, state: EnergyState) -> EnergyState:
        """One power iteration of the spectral norm."""
        if not state.spectral:
            return state
        return state._replace(spectral=spectral_norm.iterate(state.params, state.spectral))

    def head(self, state: EnergyState) -> Energy:
        """The function f of one example (or of many, with a leading axis), its weights normalised outside any chain."""
        return energies.bind(self._apply, self._normalized(state.params, state.spectral))

    def _apply(self, params: Any, x: Array) -> Array:
        return cast(Array, self.network.apply({"params": params}, x))

    def _normalized(self, params: Any, spectral: Any) -> Any:
        return spectral_norm.normalize(params, spectral) if spectral else params

    def step(
        self, state: EnergyState, data: Array, negatives: Array, temperature: float
    ) -> tuple[EnergyState, Metrics]:
        """One step of Adam on ``(mean f(data) - mean f(negatives))/τ``.

        Returns:
            The new state; the two means ``energy_data`` and ``energy_negative``, and ``energy_gradient_norm``, τ times
            the norm of the loss's gradient.
        """

        def loss(params: Any) -> tuple[Array, tuple[Array, Array]]:
            normalized = self._normalized(params, state.spectral)
            on_data, on_negatives = (self._apply(normalized, x) for x in (data, negatives))
            loss = contrastive_loss(on_data, on_negatives, temperature)
            return loss, (jnp.mean(on_data), jnp.mean(on_negatives))

        gradients, (on_data, on_negatives) = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer = self._optimizer().update(gradients, state.optimizer, state.params)
        new_state = EnergyState(optax.apply_updates(state.params, updates), state.spectral, optimizer)
        norm = temperature * optax.tree.norm(gradients)
        return new_state, {"energy_data": on_data, "energy_negative": on_negatives, "energy_gradient_norm": norm}
