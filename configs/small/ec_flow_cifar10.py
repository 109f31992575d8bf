"""Energy-calibrated flow on CIFAR-10, narrow networks for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/ec_flow_cifar10.py --workdir runs/ec_flow_cifar10
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores; some hours, an estimate and no measurement.
Expect:    likelihoods of a small flow (above 4 bits per dimension) and textures without objects: it shows that all
           parts run at 32 px.

From the released code: K, s, τ and the rate of λ. Ours: all else, since no flow of images is in it.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECFlowConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECFlowConfig(
            image_size=32,
            num_scales=3,
            num_steps=4,
            width=32,
            energy_layers=((16, 1), (32, 1), (32, 1), (64, 1)),
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32, flip=True),
        training=TrainingConfig(num_steps=2000, log_every=20, sample_every=500, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=2000),
    )
