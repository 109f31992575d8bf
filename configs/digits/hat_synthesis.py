"""Hat EBM synthesis on the bundled 8x8 digits: a hat and its cooperative generator, minutes on two cores.

Command:   jebm train configs/digits/hat_synthesis.py --workdir runs/hat_synthesis
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="synthesis",
            image_size=8,
            channels=1,
            latent_size=16,
            energy_width=32,
            generator_width=32,
            chain=ChainConfig(num_steps=30),
            test_chain=ChainConfig(num_steps=75, max_drift=None, residual_start_scale=0.01),
            energy_learning_rate=((1e-3, 0),),
            generator_learning_rate=((1e-3, 0),),
            bank_size=1_000,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=300, log_every=20, sample_every=100, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=2000),
    )
