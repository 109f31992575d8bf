"""The autoencoder that a hat retrofits, on the bundled 8x8 digits: a minute on two cores.

Command:   jebm train configs/digits/hat_autoencoder.py --workdir runs/hat_autoencoder
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import HatAutoencoderConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatAutoencoderConfig(image_size=8, channels=1, width=32, learning_rate=((1e-3, 0),)),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=1000, log_every=50, sample_every=500, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=2000),
    )
