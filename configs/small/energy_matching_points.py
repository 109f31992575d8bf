"""Energy matching of points in the plane, two moons: dense layers; a sample costs 100 gradients.

Command:   jebm train configs/small/energy_matching_points.py --workdir runs/matching_points
           jebm evaluate runs/matching_points --metrics generation,likelihood
Data:      points:two_moons, drawn on the spot; points:rings, points:eight_gaussians, ... take the same settings.
Hardware:  1 CPU core; not timed.
Expect:    unknown: these settings have not been scored.

From the released code: nothing. Ours: everything.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EnergyMatchingConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EnergyMatchingConfig(
            image_size=1,
            channels=2,
            network="dense",
            width=64,
            num_blocks=2,
            warmup_steps=1000,
            contrastive_weight=2.0,
            temperature=0.05,
            step_size=0.02,
            num_steps=80,
            generate_steps=100,
            learning_rate=1e-3,
            ema_decay=0.99,
        ),
        data=DataConfig(source="points:two_moons", batch_size=128),
        training=TrainingConfig(num_steps=2000, log_every=100, sample_every=500, num_samples=1000),
        evaluation=EvaluationConfig(num_samples=4000),
    )
