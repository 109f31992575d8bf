"""Hat EBM refinement on CIFAR-10, narrow and short for a CPU: over a VAE stopped early; not an experiment of the paper.

Command:   jebm train configs/small/ec_vae_cifar10.py --workdir runs/cifar10_early --set training.num_steps=60
           jebm train configs/small/hat_refinement.py --workdir runs/hat_refinement_small
MNIST:     the first with ec_vae_mnist.py, the second with --set data.source=npz:data/mnist.npz
           --set method.channels=1 --set method.latent_size=32 --set method.generator=DIR
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores, minutes (an estimate).
Expect:    the VAE's blurred images with more contrast; not photographs.

From the released code: the layout, joint chains without a prior of z, τ in testing. Ours: width, T, ε_z, K, learning
rate, steps.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="refinement",
            generator="runs/cifar10_early",
            latent_size=64,
            energy_width=16,
            temperature=1e-4,
            chain=ChainConfig(num_steps=20, latent_noise_scale=2e-2),
            test_chain=ChainConfig(num_steps=28, latent_noise_scale=2e-2, residual_precision=8.0, max_drift=None),
            energy_learning_rate=((3e-4, 0),),
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32),
        training=TrainingConfig(num_steps=60, log_every=10, sample_every=30),
        evaluation=EvaluationConfig(num_samples=2000),
    )
