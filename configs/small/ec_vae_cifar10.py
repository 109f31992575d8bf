"""EC-VAE on CIFAR-10, narrow networks for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/ec_vae_cifar10.py --workdir runs/ec_vae_cifar10_small
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores. About an hour; an estimate (twice the operations of ec_vae_mnist.py), not a measurement.
Expect:    coloured blobs with the layout of photographs: networks of this width show that all parts run on real
           images, not what the method can do.

From the released code: the design, both Adams' decays, K, s, τ, β, λ and its rate, the flip. Ours: the widths, the
single trunk of the energy, the learning rates, batch 64, tolerance and hinge by the rule of the noise floor.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(
            image_size=32,
            latent_size=64,
            encoder_width=16,
            decoder_width=6,
            energy_layers=((16, 1), (32, 1), (32, 1), (64, 1)),
            energy_head_width=256,
            energy_scales=1,
            vae_learning_rate=1e-3,
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=64, flip=True),
        training=TrainingConfig(num_steps=2000, log_every=50, sample_every=500, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=5000),
    )
