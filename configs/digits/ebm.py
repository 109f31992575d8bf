"""A plain energy-based model on the bundled 8x8 digits: one network, persistent chains in a bank.

Command:   jebm train configs/digits/ebm.py --workdir runs/ebm
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EBMConfig(
            rule="persistent_contrastive_divergence",
            image_size=8,
            channels=1,
            width=16,
            num_halvings=2,
            temperature=0.005,
            num_steps=15,
            generate_steps=150,
            step_size=0.25,
            bank_size=1_000,
            learning_rate=1e-3,
            ema_decay=0.99,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=400, log_every=20, sample_every=100, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=1000),
    )
