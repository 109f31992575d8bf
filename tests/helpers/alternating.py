"""Langevin on the blocks of a dict in turn: the plain form of Hat EBM's joint chains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jebm.energy import at_step, value
from jebm.mcmc.langevin import LangevinInfo, LangevinKernel, LangevinState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alternating:
    """``kernel`` with its blocks moved in this order, each by the gradient at the blocks already moved."""

    kernel: LangevinKernel
    blocks: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    stale: bool = dataclasses.field(default=False, metadata={"static": True})  # a fault: gradients at the old blocks

    def init(self, position: Any) -> LangevinState:
        return self.kernel.init(position)

    def step(self, key: Any, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        if self.kernel.noise is None:
            return self.advance(self.kernel.draw(key, state.position), state)
        return self.advance(jax.tree.map(lambda a: a[state.step], self.kernel.noise), state)

    def advance(self, noise: Any, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        position, squared_norm = dict(state.position), jnp.zeros(())
        for block in self.blocks:
            seen = state.position if self.stale else position
            energy = at_step(self.kernel.energy, state.step)
            gradient = jax.grad(lambda b: value(energy, {**seen, block: b}))(seen[block])  # noqa: B023
            one = self._of(block)
            position[block] = one._move(position[block], gradient, noise[block], state.step)
            squared_norm += optax.tree.norm(gradient, squared=True)
        energy, gradient = self.kernel._evaluate(position, state.step + 1)
        displacement = optax.tree.norm(optax.tree.sub(position, state.position))
        info = LangevinInfo(energy, jnp.sqrt(squared_norm), displacement)
        return LangevinState(position, energy, gradient, state.step + 1), info

    def _of(self, block: str) -> LangevinKernel:
        entry = lambda tree: tree[block] if isinstance(tree, dict) else tree  # noqa: E731
        box = None if self.kernel.box is None else tuple(entry(side) for side in self.kernel.box)
        options = {name: entry(getattr(self.kernel, name)) for name in ("step_size", "max_drift")}
        return dataclasses.replace(self.kernel, box=box, **options)
