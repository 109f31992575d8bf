"""The energy that calibrates a generator: network, spectral norm and optimiser in one small bundle.

Together with `calibration` this is all that calibrating a generator of any kind needs:

    model = EnergyModel(network)                                # one example in, a scalar out
    state = model.init(key, example)
    state = model.refresh(state)                                # once an iteration: a power iteration
    calibrated = calibrate(key, model.head(state), generated, settings)
    loss = own_loss + dual * calibration_loss(calibrated, generated)
    state, metrics = model.step(state, data, calibrated, settings.temperature)
    dual = dual_step(dual, calibration_loss(calibrated, generated), settings, generated[0].size)
"""

import dataclasses
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm.energy import Annealed, Energy
from jebm.learning.likelihood import contrastive_loss
from jebm.methods import accumulation
from jebm.methods.base import Metrics
from jebm.methods.shared import Trained, descend, train
from jebm.networks import spectral_norm

__all__ = ["EnergyModel", "NetworkState", "SpectralNetwork"]


class NetworkState(NamedTuple):
    """A `SpectralNetwork` in training.

    Attributes:
        trained: parameters and Adam's state; no moving average is kept.
        spectral: singular vectors of the kernels; empty without spectral normalisation.
    """

    trained: Trained
    spectral: Any


@dataclasses.dataclass(frozen=True)
class SpectralNetwork:
    """A scalar network of one example, spectrally normalised and trained by Adam: an energy, or a discriminator.

    Attributes:
        network: a Linen module that maps a batch [n, *example] to [n] and one example to a scalar, each example on
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

    def init(self, key: Array, example: Array) -> NetworkState:
        """A fresh state; ``example`` is one example, for its shape."""
        network_key, vector_key = jax.random.split(key)
        params = self.network.init(network_key, example[None])["params"]
        spectral = spectral_norm.init(vector_key, params) if self.spectral_norm else {}
        return NetworkState(train(params, self._optimizer(), ema=False), spectral)

    def refresh(self, state: NetworkState) -> NetworkState:
        """One power iteration of the spectral norm."""
        return state._replace(spectral=self._power_iteration(state.trained.params, state.spectral))

    def head(self, state: NetworkState) -> Energy:
        """The function of one example (or of many, with leading axes), its weights normalised outside any chain."""
        return energies.bind(self.network.apply, {"params": self._normalized(state.trained.params, state.spectral)})

    def descend(self, state: NetworkState, gradients: Any) -> NetworkState:
        """One step of Adam by the gradients of a loss in the parameters."""
        return state._replace(trained=descend(state.trained, gradients, self._optimizer()))

    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.b1, b2=self.b2, eps=1e-8)

    def _power_iteration(self, params: Any, spectral: Any) -> Any:
        return spectral_norm.iterate(params, spectral) if spectral else spectral

    def _normalized(self, params: Any, spectral: Any) -> Any:
        return spectral_norm.normalize(params, spectral) if spectral else params


@dataclasses.dataclass(frozen=True)
class EnergyModel(SpectralNetwork):
    """An energy ``E(x) = f(x)/τ`` that learns to distinguish data from calibrated samples.

    Attributes:
        network: f, see `SpectralNetwork`, as for the settings of Adam and ``spectral_norm``.
        power_iterations: ``"per_update"``: one power iteration by `refresh` [ours]; ``"per_evaluation"``: one before
            each evaluation of f, in `chain_head` and in `step`, and none by `refresh` (the released code).
        regularization: α of `contrastive_loss` [ours].
    """

    power_iterations: Literal["per_update", "per_evaluation"] = "per_update"
    regularization: float = 0.0

    def refresh(self, state: NetworkState) -> NetworkState:
        """One power iteration of the spectral norm, to be made once per training iteration."""
        return state if self.power_iterations == "per_evaluation" else super().refresh(state)

    def chain_head(self, state: NetworkState, num_steps: int) -> tuple[Energy | Annealed, NetworkState]:
        """The function f for one chain of ``num_steps`` evaluations, and the state after that chain.

        With a power iteration at each evaluation f is annealed: evaluation k sees the weights as normalised after
        k + 1 iterations. They do not depend on x, so that their norms are computed before the chain.
        """
        if not state.spectral or self.power_iterations == "per_update":
            return self.head(state), state
        params = state.trained.params

        def iterate(vectors: Any, _: None) -> tuple[Any, Any]:
            vectors = self._power_iteration(params, vectors)
            return vectors, spectral_norm.sigmas(params, vectors)

        after, table = jax.lax.scan(iterate, state.spectral, None, num_steps)
        return energies.anneal(self._at_evaluation, params, table), state._replace(spectral=after)

    def _at_evaluation(self, params: Any, table: Any, step: Array, x: Array) -> Array:
        norms = jax.tree.map(lambda sigma: sigma[jnp.minimum(step, sigma.shape[0] - 1)], table)
        return cast(Array, self.network.apply({"params": spectral_norm.divide(params, norms)}, x))

    def step(
        self, state: NetworkState, data: Array, negatives: Array, temperature: float, microbatches: int = 1
    ) -> tuple[NetworkState, Metrics]:
        """One step of Adam on ``(mean f(data) - mean f(negatives))/τ``, regularised; see `contrastive_loss`.

        Returns:
            The new state; the two means ``energy_data`` and ``energy_negative``, and ``energy_gradient_norm``, τ times
            the norm of the loss's gradient.
        """
        params = state.trained.params
        of_data = of_negatives = state.spectral
        if self.power_iterations == "per_evaluation":  # no gradient flows through them
            of_data = self._power_iteration(params, state.spectral)
            of_negatives = self._power_iteration(params, of_data)

        def evaluate(params: Any, spectral: Any, x: Array) -> Array:
            return cast(Array, self.network.apply({"params": self._normalized(params, spectral)}, x))

        def loss(params: Any, data: Array, negatives: Array) -> tuple[Array, Any]:
            on_data, on_negatives = evaluate(params, of_data, data), evaluate(params, of_negatives, negatives)
            total = contrastive_loss(on_data, on_negatives, temperature, self.regularization)
            return total, ((jnp.mean(on_data), jnp.mean(on_negatives)), ())

        gradients, (on_data, on_negatives), _ = accumulation.gradients(loss, microbatches, params, data, negatives)
        new_state = self.descend(state._replace(spectral=of_negatives), gradients)
        norm = temperature * optax.tree.norm(gradients)
        return new_state, {"energy_data": on_data, "energy_negative": on_negatives, "energy_gradient_norm": norm}
