"""Times a whole training step of Hat EBM synthesis in jebm and in TensorFlow (graph mode), same sizes and weights.

    python benchmarks/hat_training_step.py --batch 16 --num-steps 10

The TensorFlow step is our own writing of what the authors' released code does, in its order: Langevin on the residual
with the generator inside the loop, evaluated anew at each step though z stays; the hat's Adam step; the generator's on
old pairs of the bank; their replacement; a moving average of both networks. The two take turns within each repeat.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
from langevin_chain import assert_same
from networks import TensorflowOperations, hat

from jebm.methods import ChainConfig, HatEBMConfig, build
from jebm.methods.hat.ebm import HatEBMState, base_generator, networks

Tree = Any


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=10, help="Langevin steps (the authors': 50)")
    parser.add_argument("--width", type=int, default=256, help="of both networks (the authors': 256)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    config = HatEBMConfig(
        energy_width=options.width, generator_width=options.width, bank_size=8 * options.batch,
        chain=ChainConfig(num_steps=options.num_steps),
    )  # fmt: skip
    images = np.random.default_rng(0).uniform(-1, 1, (options.batch, 32, 32, 3)).astype(np.float32)
    method = build(config)
    state = jax.jit(method.init)(jax.random.key(0), jnp.asarray(images))
    reference = TensorflowStep(config, state)
    reference.check(images)

    update = jax.jit(method.update, donate_argnums=1)

    def ours(repeat: int) -> float:
        nonlocal state
        state, metrics = update(jax.random.key(repeat), state, images)
        return float(metrics["energy_loss"])

    runs: dict[str, Callable[[int], float]] = {"jebm": ours, "tensorflow": lambda repeat: reference.step(images)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(1 + options.repeats):  # the first one compiles
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            if not np.isfinite(run(repeat)):
                raise FloatingPointError(f"{name} left the finite numbers")
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
            print(f"{name} {repeat}: wall {times[name][-1][0]:.1f}, processor {times[name][-1][1]:.1f}", flush=True)

    print(f"batch {options.batch}, K = {options.num_steps}, width {options.width}, 32 px, {os.cpu_count()} cores")
    print("| library | wall s, median (all) | processor s, median (all) | first step, wall s |")
    print("|---|---|---|---|")
    medians = {}
    for name, pairs in times.items():
        columns = list(zip(*pairs[1:], strict=True))
        medians[name] = [statistics.median(column) for column in columns]
        cells = [
            f"{median:.2f} ({', '.join(f'{value:.2f}' for value in column)})"
            for median, column in zip(medians[name], columns, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} | {pairs[0][0]:.1f} |")
    wall, processor = (b / a for a, b in zip(medians["jebm"], medians["tensorflow"], strict=True))
    print(f"TensorFlow / jebm: wall {wall:.2f}, processor {processor:.2f}")


class TensorflowStep:
    """The training step in TensorFlow; weights, statistics and bank begin as those of ``state``."""

    def __init__(self, config: HatEBMConfig, state: HatEBMState) -> None:
        import tensorflow as tf

        self.tf, self.config, self.ops, self.state = tf, config, TensorflowOperations(), state
        self.energy = self.ops.parameters(state.energy.params)
        self.generator = self.ops.parameters(state.generator.params)
        assert state.bank is not None
        self.bank_z = tf.Variable(np.asarray(state.bank.entries["z"]))
        self.bank_x = tf.Variable(np.asarray(state.bank.entries["image"]))
        adam = {"learning_rate": 1e-4, "use_ema": True, "ema_momentum": 0.9999}
        self.energy_adam, self.generator_adam = (tf.keras.optimizers.Adam(**adam) for _ in range(2))
        self.energy_adam.build(jax.tree.leaves(self.energy))
        self.generator_adam.build(jax.tree.leaves(self.generator))
        self.compiled = tf.function(self._step)

    def check(self, images: np.ndarray) -> None:
        """H, its gradient and G are those of jebm."""
        tf, config = self.tf, self.config
        z = np.random.default_rng(1).normal(size=(len(images), config.latent_size)).astype(np.float32)

        @tf.function
        def theirs(x: Any, z: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                energies = hat(self.ops, self.energy, x)[:, 0]
            return energies, tape.gradient(energies, x), self._generate(z)

        @jax.jit
        def ours(state: HatEBMState, x: Any, z: Any) -> Any:
            energy, generator = networks(config, base_generator(config), state)
            values, gradient = jax.vmap(jax.value_and_grad(energy))(x)
            return values, gradient, jax.vmap(generator)(z)

        their_values, their_gradient, their_images = (a.numpy() for a in theirs(tf.constant(images), tf.constant(z)))
        values, gradient, generated = map(np.asarray, ours(self.state, images, z))
        assert_same("tensorflow", (their_values, their_gradient), (values, gradient))
        np.testing.assert_allclose(their_images, generated, atol=1e-4)

    def step(self, images: np.ndarray) -> float:
        """One training step; returns the hat's loss."""
        return float(self.compiled(self.tf.constant(images)))

    def _step(self, images: Any) -> Any:
        tf, config = self.tf, self.config
        chain, temperature = config.chain, config.temperature
        z = tf.random.normal((len(images), config.latent_size))
        y = tf.zeros_like(images)
        bound = chain.max_drift / (0.5 * chain.noise_scale**2)
        for _ in tf.range(chain.num_steps):
            with tf.GradientTape() as tape:
                tape.watch(y)
                energy = tf.reduce_sum(hat(self.ops, self.energy, self._generate(z) + y)) / temperature
            gradient = tape.gradient(energy, y)
            gradient = tf.clip_by_norm(gradient, bound, (1, 2, 3))
            y = y - 0.5 * chain.noise_scale**2 * gradient + chain.noise_scale * tf.random.normal(tf.shape(y))
        samples = self._generate(z) + y

        data = images + config.data_noise * tf.random.normal(tf.shape(images))
        with tf.GradientTape() as tape:
            difference = tf.reduce_mean(hat(self.ops, self.energy, data)) - tf.reduce_mean(
                hat(self.ops, self.energy, samples)
            )
            loss = difference / temperature
        self._apply(self.energy_adam, tape, loss, self.energy)

        indices = tf.random.shuffle(tf.range(self.bank_z.shape[0]))[: len(images)]
        old_z, old_x = tf.gather(self.bank_z, indices), tf.gather(self.bank_x, indices)
        with tf.GradientTape() as tape:
            generator_loss = config.generator_loss_scale * tf.reduce_mean((self._generate(old_z) - old_x) ** 2)
        self._apply(self.generator_adam, tape, generator_loss, self.generator)
        self.bank_z.scatter_nd_update(indices[:, None], z)
        self.bank_x.scatter_nd_update(indices[:, None], samples)
        return loss

    def _apply(self, adam: Any, tape: Any, loss: Any, tree: Tree) -> None:
        variables = jax.tree.leaves(tree)
        adam.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    def _generate(self, z: Any) -> Any:
        """`jebm.methods.hat.networks.HatGenerator` for 32 px."""
        tf, params = self.tf, self.generator
        x = self.ops.dense(params["dense"], z)
        x = tf.transpose(tf.reshape(x, (-1, self.config.generator_width, 4, 4)), (0, 2, 3, 1))
        for name in ("block2", "block3", "block4"):
            block = params[name]
            y = self._upsample(tf.nn.relu(self._normalize(block["bn_1"], x)))
            y = tf.nn.relu(self._normalize(block["bn_2"], self.ops.conv(block["conv_1"], y)))
            x = self.ops.conv(block["conv_2"], y) + self.ops.conv(block["shortcut"], self._upsample(x))
        x = tf.nn.relu(self._normalize(params["out_bn"], x))
        return self.config.output_scale * tf.tanh(self.ops.conv(params["out_conv"], x))

    def _normalize(self, p: Tree, x: Any) -> Any:
        """Batch normalisation in inference mode, statistics 0 and 1."""
        channels = x.shape[-1]
        mean, variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        return self.tf.nn.batch_normalization(x, mean, variance, p["bias"], p["scale"], 1e-3)

    def _upsample(self, x: Any) -> Any:
        return self.tf.image.resize(x, (2 * x.shape[1], 2 * x.shape[2]))


if __name__ == "__main__":
    main()
