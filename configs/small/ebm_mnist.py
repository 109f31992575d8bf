"""A plain energy-based model on MNIST: one network, persistent chains in a bank.

Command:   jebm train configs/small/ebm_mnist.py --workdir runs/ebm_mnist
Data:      data/mnist.npz with x_train [60000, 28, 28] and x_test [10000, 28, 28], uint8; padded to 32x32.
Hardware:  2 CPU cores, some hours; not timed. An accelerator makes minutes of it.
Expect:    unknown: these settings are those of configs/digits/ebm.py at another size, and have not been trained to the
           end.

From the released code of others: nothing. Ours: everything; the layout of the network is that of Nijkamp et al.
(arXiv 1904.09770), bank and rejuvenation are those of Du and Mordatch (arXiv 1903.08689).
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EBMConfig(
            rule="persistent_contrastive_divergence",
            image_size=32,
            channels=1,
            width=16,
            num_halvings=3,
            temperature=0.005,
            num_steps=30,
            generate_steps=300,
            step_size=0.25,
            bank_size=5_000,
            learning_rate=3e-4,
            ema_decay=0.999,
        ),
        data=DataConfig(source="npz:data/mnist.npz", batch_size=64),
        training=TrainingConfig(num_steps=5000, log_every=50, sample_every=500, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=5000),
    )
