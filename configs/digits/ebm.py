"""A plain energy-based model on the bundled 8x8 digits: one network, persistent chains in a bank.

Command:   jebm train configs/digits/ebm.py --workdir runs/ebm
Hardware:  1 CPU core, two minutes.
Expect:    digits, most of them readable. Seed 0, once: Frechet distance 16.4 in the digit classifier's features
           (held-out digits 5.5), precision 0.66, recall 0.83; the energy tells uniform noise, constant and shuffled
           images from digits without an error (AUROC 1.00), interpolations at 0.70.

Everything here is ours. ``--set method.rule=short_run_likelihood`` and the other rules of `jebm.learning` take the same
settings; no score of theirs is promised.
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
