"""Energy matching on MNIST, a small network for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/energy_matching_mnist.py --workdir runs/energy_matching_mnist
Data:      data/mnist.npz, from 'jebm data prepare mnist': x_train [60000, 28, 28, 1] and x_test [10000, 28, 28, 1],
           uint8.
Hardware:  2 CPU cores, hours; not timed. An accelerator makes minutes of it.
Expect:    unknown: these settings have not been trained to the end.

From the released code: λ times the numbers of an image, Adam's β₂. Ours: network, steps of Δt = 0.05 instead of 0.01,
lengths of both phases.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EnergyMatchingConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EnergyMatchingConfig(
            image_size=28,
            channels=1,
            width=16,
            num_halvings=2,
            num_blocks=1,
            head_width=256,
            warmup_steps=10_000,
            contrastive_weight=4e-3,
            step_size=0.05,
            num_steps=40,
            generate_steps=65,
            learning_rate=1e-3,
            ema_decay=0.999,
        ),
        data=DataConfig(source="npz:data/mnist.npz", batch_size=64),
        training=TrainingConfig(num_steps=10_500, log_every=100, sample_every=1000, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=2000),
    )
