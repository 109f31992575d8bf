"""Smaller images for a CPU: every image set halved, 28x28 padded to 32x32 first.

python benchmarks/reduce_images.py npz:data/mnist.npz data/mnist16.npz
"""

import argparse
import pathlib

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="images, as jebm train takes them: npz:data/mnist.npz")
    parser.add_argument("out", type=pathlib.Path, help="the .npz file to write")
    options = parser.parse_args()
    source = load(options.source)
    np.savez(
        options.out, x_train=halved(source.train), x_test=halved(source.test), y_train=source.train_labels,
        y_test=source.test_labels,
    )  # fmt: skip
