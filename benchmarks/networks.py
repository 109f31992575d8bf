"""The energies that are timed, written once over a small set of operations, and those operations for each library.

The parameters are the tree of the Flax modules, so weights are the same numbers everywhere. PyTorch gets them in its
own layout (images NCHW, kernels OIHW); TensorFlow and JAX take NHWC and HWIO.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jebm.methods.ec.energy_networks import MSResNet
from jebm.methods.hat.networks import HatEnergy

Tree = Any


def hat(ops: Any, params: Tree, x: Any) -> Any:
    """`jebm.methods.hat.networks.HatEnergy` for 32 px on a batch."""
    for i, halve in enumerate((True, True, False, False)):
        block = params["stem" if i == 0 else f"block{i + 1}"]
        y = ops.conv(block["conv_1"], x if i == 0 else ops.relu(x))
        y = ops.conv(block["conv_2"], ops.relu(y))
        if halve:
            y = ops.average_pool(y)
            shortcut, pool = block["shortcut"], ops.average_pool
            x = ops.conv(shortcut, pool(x)) if i == 0 else pool(ops.conv(shortcut, x))
        x = x + y
    return ops.dense(params["head"], ops.mean_of_pixels(ops.relu(x)))


def ms_resnet(ops: Any, params: Tree, x: Any) -> Any:
    """`jebm.methods.ec.energy_networks.MSResNet` on a batch."""
    features = []
    for scale in (1, 2, 3):
        features.append(_trunk(ops, params[f"scale{scale}"], x))
        x = ops.average_pool(x) if scale < 3 else x
    hidden = ops.leaky_relu(ops.dense(params["head"]["fc_1"], ops.concatenate(features)))
    return ops.dense(params["head"]["fc_2"], hidden)


def _trunk(ops: Any, params: Tree, x: Any) -> Any:
    x = ops.conv(params["stem"], x)
    for i in range(len(params) - 1):
        x = ops.average_pool(x) if i > 0 else x
        for j in range(len(params[f"stage{i}"])):
            block = params[f"stage{i}"][f"block{j}"]
            y = ops.conv(block["conv_1"], ops.leaky_relu(x))
            y = ops.conv(block["conv_2"], ops.leaky_relu(y))
            x = (ops.conv(block["shortcut"], x) if "shortcut" in block else x) + y
    return ops.mean_of_pixels(ops.leaky_relu(x))


class TorchOperations:
    """Eager PyTorch; images NCHW."""

    def __init__(self) -> None:
        import torch
        import torch.nn.functional as functional

        self.torch, self.relu = torch, functional.relu
        self.leaky_relu = lambda x: functional.leaky_relu(x, 0.2)
        self.average_pool = lambda x: functional.avg_pool2d(x, 2)
        self.mean_of_pixels = lambda x: x.mean((2, 3))
        self.concatenate = lambda xs: torch.cat(xs, 1)
        self.dense = lambda p, x: functional.linear(x, p["kernel"], p.get("bias"))
        self.conv = lambda p, x: functional.conv2d(x, p["kernel"], p.get("bias"), padding=p["kernel"].shape[-1] // 2)

    def parameters(self, tree: Tree) -> Tree:
        def convert(leaf: Any) -> Any:
            leaf = np.array(leaf)
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
            return self.torch.from_numpy(np.ascontiguousarray(leaf.transpose(order)))

        return jax.tree.map(convert, tree)

    def chain(self, network: Callable, tree: Tree, step_size: float, temperature: float) -> tuple[Callable, Callable]:
        torch, params = self.torch, self.parameters(tree)
        noise_scale = (2.0 * step_size * temperature) ** 0.5

        def energy_and_gradient(x: Any) -> tuple[Any, Any]:
            x = x.detach().requires_grad_()
            energies = network(self, params, x)[:, 0]
            return energies, torch.autograd.grad(energies.sum(), x)[0]

        def check(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            energies, gradient = energy_and_gradient(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
            return energies.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)

        def run(images: np.ndarray, num_steps: int) -> np.ndarray:
            x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            for _ in range(num_steps):
                x = x - step_size * energy_and_gradient(x)[1] + noise_scale * torch.randn_like(x)
            return x.numpy()

        return check, run


class TensorflowOperations:
    """TensorFlow in graph mode; images NHWC."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.tf, self.relu = tf, tf.nn.relu
        self.leaky_relu = lambda x: tf.nn.leaky_relu(x, 0.2)
        self.average_pool = lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID")
        self.mean_of_pixels = lambda x: tf.reduce_mean(x, (1, 2))
        self.concatenate = lambda xs: tf.concat(xs, -1)
        self.dense = lambda p, x: self._bias(p, x @ p["kernel"])
        self.conv = lambda p, x: self._bias(p, tf.nn.conv2d(x, p["kernel"], 1, "SAME"))

    def _bias(self, p: Tree, x: Any) -> Any:
        return self.tf.nn.bias_add(x, p["bias"]) if "bias" in p else x

    def parameters(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: self.tf.Variable(np.array(leaf)), tree)

    def chain(self, network: Callable, tree: Tree, step_size: float, temperature: float) -> tuple[Callable, Callable]:
        tf, params = self.tf, self.parameters(tree)
        noise_scale = (2.0 * step_size * temperature) ** 0.5

        def energy_and_gradient(x: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                energies = network(self, params, x)[:, 0]
            return energies, tape.gradient(energies, x)

        @tf.function
        def loop(x: Any, num_steps: Any) -> Any:
            for _ in tf.range(num_steps):
                x = x - step_size * energy_and_gradient(x)[1] + noise_scale * tf.random.normal(tf.shape(x))
            return x

        def check(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            energies, gradient = tf.function(energy_and_gradient)(tf.constant(images))
            return energies.numpy(), gradient.numpy()

        def run(images: np.ndarray, num_steps: int) -> np.ndarray:
            return loop(tf.constant(images), tf.constant(num_steps)).numpy()

        return check, run


class CountingOperations:
    """Computes nothing; counts the multiply-adds of convolutions and linear layers, summed directly."""

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.relu = self.leaky_relu = lambda x: x
        self.average_pool = lambda x: x[:, ::2, ::2]
        self.mean_of_pixels = lambda x: x[:, 0, 0]
        self.concatenate = lambda xs: np.concatenate(xs, -1)
        self.conv = self.dense = self._count

    def _count(self, p: Tree, x: np.ndarray) -> np.ndarray:
        *positions, channels = x.shape
        self.multiply_adds += p["kernel"].size * x.size // channels
        return np.zeros((*positions, p["kernel"].shape[-1]), np.float32)


NETWORKS = {
    "msresnet-small": (MSResNet(layers=((32, 2), (64, 2))), ms_resnet),
    "msresnet-demo": (MSResNet(), ms_resnet),
    "hat32": (HatEnergy(), hat),
}
"""Name -> Flax module, and the same network over the operations of a peer."""
