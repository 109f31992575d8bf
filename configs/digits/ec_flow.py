"""Energy-calibrated flow on the bundled 8x8 digits; not an experiment of the paper.

Command:   jebm train configs/digits/ec_flow.py --workdir runs/ec_flow
Hardware:  2 CPU cores, a few minutes.
Expect:    about 5.8 bits per dimension, as without calibration, and samples much nearer to the digits
           (results/ec_flow.md).

Everything here is ours: the paper (arXiv 2311.04071) names such extensions and gives no numbers.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECFlowConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECFlowConfig(
            image_size=8,
            channels=1,
            num_scales=2,
            num_steps=4,
            width=32,
            energy_layers=((16, 1), (32, 1)),
            energy_head_width=128,
            energy_learning_rate=5e-4,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(num_steps=1000, log_every=50, sample_every=250, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=2000),
    )
