"""Energy-calibrated GAN on the bundled 8x8 digits: how to calibrate a generator that is no VAE; not of the paper.

Command:   jebm train configs/digits/ec_gan.py --workdir runs/ec_gan
Hardware:  2 CPU cores, a few minutes.
Expect:    digits, or some of the ten only: no measured score is promised.

Everything here is ours: the paper (arXiv 2311.04071) names such extensions and gives no numbers.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECGANConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECGANConfig(
            image_size=8,
            channels=1,
            latent_size=16,
            generator_width=4,
            discriminator_layers=((16, 1), (32, 1)),
            energy_layers=((16, 1), (32, 1)),
            learning_rate=1e-3,
            energy_learning_rate=5e-4,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=1000, log_every=50, sample_every=250, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=2000),
    )
