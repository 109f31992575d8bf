"""Energy-calibrated VAE on the bundled 8x8 digits: the two-minute demonstration.

Command:   jebm train configs/digits/ec_vae.py --workdir runs/digits
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(
            image_size=8,
            channels=1,
            latent_size=16,
            encoder_width=16,
            decoder_width=4,
            energy_layers=((16, 1), (32, 1)),
            energy_head_width=128,
            energy_scales=1,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=200, log_every=50, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=2000),
    )
