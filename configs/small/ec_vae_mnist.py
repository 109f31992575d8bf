"""EC-VAE on MNIST, narrow networks for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/ec_vae_mnist.py --workdir runs/ec_vae_mnist
Data:      data/mnist.npz, from 'jebm data prepare mnist': x_train [60000, 28, 28] and x_test [10000, 28, 28],
           uint8, padded to 32x32.
Hardware:  2 CPU cores. About half an hour; an estimate from a run of 40 steps (about 1 s each) on a busy machine.
Expect:    readable digits, some of them blurred or broken.

From the released code: the design, both Adams' decays, K, s, τ, β, λ and its rate. Ours: the widths, the single trunk
of the energy, the learning rates, batch 64, tolerance and hinge by the rule of the noise floor.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(
            image_size=32,
            channels=1,
            latent_size=32,
            encoder_width=16,
            decoder_width=4,
            energy_layers=((8, 1), (16, 1), (32, 1), (32, 1)),
            energy_head_width=256,
            energy_scales=1,
            vae_learning_rate=1e-3,
        ),
        data=DataConfig(source="npz:data/mnist.npz", batch_size=64),
        training=TrainingConfig(num_steps=2000, log_every=50, sample_every=500, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=5000),
    )
