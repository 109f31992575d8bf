"""Hat EBM retrofit on CIFAR-10, narrow and short for a CPU, over hat_autoencoder.py; not an experiment of the paper.

Command:   jebm train configs/small/hat_autoencoder.py --workdir runs/hat_autoencoder_small
           jebm train configs/small/hat_retrofit.py --workdir runs/hat_retrofit_small
MNIST:     both with --set data.source=npz:data/mnist.npz --set method.channels=1
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores, minutes (an estimate).
Expect:    codes of N(0, I) moved to where the decoder makes smoother images; not photographs.

From the released code: the layout, τ, the noise on data. Ours: width, T, ε_z, K, learning rate, steps.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="retrofit",
            generator="runs/hat_autoencoder_small",
            energy_width=16,
            temperature=1e-4,
            chain=ChainConfig(num_steps=20, latent_noise_scale=2e-2, residual_precision=50.0),
            test_chain=ChainConfig(
                num_steps=28, latent_noise_scale=2e-2, residual_precision=50.0, max_drift=None,
                residual_start_scale=0.01,
            ),
            energy_learning_rate=((3e-4, 0),),
            data_noise=1e-2,
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32),
        training=TrainingConfig(num_steps=60, log_every=10, sample_every=30),
        evaluation=EvaluationConfig(num_samples=2000),
    )  # fmt: skip
