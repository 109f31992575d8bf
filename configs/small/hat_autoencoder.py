"""The autoencoder that hat_retrofit.py takes, on CIFAR-10, narrow and short for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/hat_autoencoder.py --workdir runs/hat_autoencoder_small
MNIST:     --set data.source=npz:data/mnist.npz --set method.channels=1
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores, minutes (an estimate).
Expect:    codes that rebuild an image coarsely, and noise from codes of N(0, I).

From the released code: the layout, the sphere of codes, their noise. Ours: width, batch, learning rate, steps.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import HatAutoencoderConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatAutoencoderConfig(width=16, learning_rate=((1e-3, 0),)),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32),
        training=TrainingConfig(num_steps=200, log_every=20, sample_every=100),
        evaluation=EvaluationConfig(num_samples=2000),
    )
