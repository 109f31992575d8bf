"""Energy matching on CIFAR-10, a small network; not the paper's experiment (FID 3.3 with 50 million parameters).

Command:   jebm train configs/small/energy_matching_cifar10.py --workdir runs/energy_matching_cifar10
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  an accelerator; not timed. On 2 CPU cores add --set method.width=16 --set method.num_blocks=1.
Expect:    unknown: these settings have not been trained to the end.

From the released code: λ, ε_max, τ* = 1, Δt = 0.01 in training's 200 steps and the 325 of a sample, Adam with
β₂ = 0.95, flips. Ours: the network, its learning rate and average, and the lengths of both phases (theirs: 145,000
iterations, then 2,000, of four times 128 images).
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EnergyMatchingConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EnergyMatchingConfig(
            image_size=32,
            channels=3,
            width=64,
            num_halvings=3,
            num_blocks=2,
            head_width=512,
            warmup_steps=50_000,
            learning_rate=3e-4,
            ema_decay=0.999,
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=128, flip=True),
        training=TrainingConfig(num_steps=51_000, log_every=100, sample_every=5000, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=5000),
    )
