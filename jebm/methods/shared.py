"""Shared parts of the families: networks that learn, draws of the prior, checks of images."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import Partial

from jebm import mcmc, sharding
from jebm.energy import Energy, is_concrete, value
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.methods.base import Method, State, Weights

__all__ = [
    "Trained", "chain_kernel", "descend", "gathered", "has_ema", "parameter_counts", "prior_samples",
    "requiring_images", "train", "warm_up", "with_weights",
]  # fmt: skip

LARGEST = 5.0  # of an image's absolute values; chains leave [-1, 1], levels of 255 are a mistake


class Trained(NamedTuple):
    """A network that learns.

    Attributes:
        params: the raw parameters.
        optimizer: the optimiser's state.
        ema: their exponential moving average; None where none is kept.
    """

    params: Any
    optimizer: Any
    ema: Any = None


def train(params: Any, optimizer: optax.GradientTransformation, *, ema: bool = True) -> Trained:
    """Parameters, a fresh optimiser state, and with ``ema`` their average, which starts at them."""
    return Trained(params, optimizer.init(params), jax.tree.map(jnp.array, params) if ema else None)


def descend(
    trained: Trained, gradients: Any, optimizer: optax.GradientTransformation, ema_decay: Array | float = 0.0
) -> Trained:
    """One step of the optimiser, and of the average: ``ema ← decay ema + (1 - decay) params``."""
    updates, optimizer_state = optimizer.update(gradients, trained.optimizer, trained.params)
    params = optax.apply_updates(trained.params, updates)
    ema = None if trained.ema is None else optax.incremental_update(params, trained.ema, 1.0 - ema_decay)
    return Trained(params, optimizer_state, ema)


def warm_up(decay: float, step: Array) -> Array:
    """``min(decay, (1 + t)/(10 + t))`` at step t: a young average forgets its initial values."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _is_trained(node: Any) -> bool:
    return isinstance(node, Trained)


def has_ema(state: State) -> bool:
    """Whether a network of the state keeps a moving average."""
    nodes = jax.tree.leaves(state, is_leaf=_is_trained)
    return any(node.ema is not None for node in nodes if _is_trained(node))


def with_weights(state: State, weights: Weights) -> State:
    """The state with its raw weights, or their moving average, in both places: either is then what generates.

    For looking at a model, not for training it further.

    Raises:
        ConfigError: averages of a state that keeps none.
    """
    if weights == "ema" and not has_ema(state):
        raise ConfigError("this model keeps no moving average of its weights: take the raw ones")

    def chosen(node: Any) -> Any:
        if not _is_trained(node) or node.ema is None:
            return node
        return node._replace(ema=node.params) if weights == "raw" else node._replace(params=node.ema)

    return jax.tree.map(chosen, state, is_leaf=_is_trained)


def gathered(state: State, *, averages: bool = False) -> State:
    """Inside a compiled program: the state with its networks whole on every device, so that no loop gathers them.

    Optimisers and banks stay where they are, as do averages unless asked for: a training iteration uses none of them
    in a network. Without a mesh in force (`jax.set_mesh`) nothing changes.
    """

    def whole(node: Any) -> Any:
        if isinstance(node, bank.Bank):
            return node
        if not _is_trained(node):
            return sharding.constrain_copied(node)
        ema = sharding.constrain_copied(node.ema) if averages else node.ema
        return node._replace(params=sharding.constrain_copied(node.params), ema=ema)

    return jax.tree.map(whole, state, is_leaf=lambda node: isinstance(node, Trained | bank.Bank))


def chain_kernel(method: Method, state: State) -> mcmc.LangevinKernel:
    """The kernel of training's chain on images, as it walks ``Method.energy``.

    Raises:
        ValueError: a family whose chains of training are not on images.
    """
    if method.chain is None:
        raise ValueError("this family has no chain on images in training")
    step_size = method.chain.step_size * method.temperature
    return mcmc.langevin(method.energy(state), step_size, max_drift=method.chain.max_drift)


def parameter_counts(networks: Mapping[str, Any]) -> dict[str, int]:
    """The parameters of each network, as `Method.networks` gives them; shapes suffice."""
    trees = {name: network.params if _is_trained(network) else network for name, network in networks.items()}
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}


def prior_samples(key: Array, n: int, shape: tuple[int, ...]) -> Array:
    """Standard normals [n, *shape]; row i does not depend on ``n``."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(mcmc.chain_keys(key, n))


def requiring_images(method: Method) -> Method:
    """The method with functions that refuse what are no images of its own.

    Networks of convolutions would score images of any size, and levels of [0, 255], without a word.
    """
    height, width, channels = method.image_shape

    def init(key: Array, batch: Array) -> State:
        if batch.shape[1:] != method.image_shape:
            raise ConfigError(
                f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects "
                f"{method.image_shape}: set method.image_size and method.channels, or another data.source"
            )
        return method.init(key, batch)

    def energy(state: State) -> Energy:
        return Partial(_checked(method.image_shape), method.energy(state))

    def reconstruct(key: Array, state: State, images: Array) -> Array:
        if jnp.ndim(images) != 4:
            raise ValueError(f"images of this model have shape [n, {height}, {width}, {channels}], got "
                             f"{list(jnp.shape(images))}: resize or reshape them")  # fmt: skip
        _require(method.image_shape, jnp.shape(images)[1:], images)
        return method.reconstruct(key, state, images)  # type: ignore[misc]

    return method._replace(init=init, energy=energy, reconstruct=None if method.reconstruct is None else reconstruct)


@functools.cache
def _checked(shape: tuple[int, ...]) -> Callable[[Energy, Array], Array]:
    """One function a shape: energies of one method are then one program's arguments."""

    def energy(inner: Energy, x: Array) -> Array:
        _require(shape, jnp.shape(x), x)
        return value(inner, x)

    return energy


def _require(expected: tuple[int, ...], shape: tuple[int, ...], x: Array) -> None:
    if shape != expected:
        raise ValueError(
            f"images of this model have shape {list(expected)}, got {list(shape)}: resize or reshape them, and take "
            "jax.vmap for a batch"
        )
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images must be floating in [-1, 1], got {dtype}: use jebm.data.to_float for uint8")
    if is_concrete(x) and np.max(np.abs(np.asarray(x)), initial=0.0) > LARGEST:
        raise ValueError(
            f"images must lie in [-1, 1], or near it, got values from {np.min(np.asarray(x)):.4g} to "
            f"{np.max(np.asarray(x)):.4g}: use jebm.data.to_float for levels of 255"
        )
