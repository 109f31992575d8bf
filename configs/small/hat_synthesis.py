"""Hat EBM synthesis on CIFAR-10, narrow networks and few steps for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/hat_synthesis.py --workdir runs/hat_synthesis_small
MNIST:     --set data.source=npz:data/mnist.npz --set method.channels=1 (padded to 32x32)
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores, minutes (an estimate).
Expect:    blobs of colour, on MNIST strokes: the budget shows what the chain adds to its generator, not more.

From the released code: the layouts, T, ε, the bank, the output range. Ours: widths, batch, K, learning rates, steps.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="synthesis",
            latent_size=64,
            energy_width=16,
            generator_width=32,
            chain=ChainConfig(num_steps=20),
            # as long as training's: at 2.5 times that the chain overshoots on CIFAR-10 (results/hat_ebm.md)
            test_chain=ChainConfig(num_steps=20, max_drift=None, residual_start_scale=0.01),
            energy_learning_rate=((1e-3, 0),),
            generator_learning_rate=((1e-3, 0),),
            bank_size=640,
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32),
        training=TrainingConfig(num_steps=150, log_every=10, sample_every=50),
        evaluation=EvaluationConfig(num_samples=2000),
    )
