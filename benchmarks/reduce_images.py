"""Smaller images for a CPU: every image set halved, 28x28 padded to 32x32 first.

python benchmarks/reduce_images.py npz:data/mnist.npz data/mnist16.npz
"""

import pathlib
import sys

import numpy as np

from jebm.data.named import load


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] to the means of 2x2 blocks; H and W of 28 become 32 by a black border."""
    if images.shape[1] == 28:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, channels)
    return np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


if __name__ == "__main__":
    source, out = load(sys.argv[1]), pathlib.Path(sys.argv[2])
    np.savez(
        out, x_train=halved(source.train), x_test=halved(source.test), y_train=source.train_labels,
        y_test=source.test_labels,
    )  # fmt: skip
