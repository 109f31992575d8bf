"""Denoising-EBM on CIFAR-10, narrow networks for a CPU; not an experiment of the paper.

Command:   jebm train configs/small/denoising_cifar10.py --workdir runs/denoising_cifar10
Data:      data/cifar10.npz, from 'jebm data prepare cifar10': x_train [50000, 32, 32, 3] and x_test [10000, 32, 32, 3],
           uint8.
Hardware:  2 CPU cores. Not timed at this size; `--set method.image_size=16` makes a step about four times cheaper.
Expect:    see results/denoising_ebm.md.

From the released codes of neighbouring methods: for chains on pixels b² = 2e-4 (DRL), the averages' decay (NCSNv2), the
energies' L2 (IGEBM; its weight is ours). Ours: everything else, see `jebm.methods.denoising.ebm`.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import DenoisingEBMConfig
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=DenoisingEBMConfig(
            image_size=32,
            width=32,
            multipliers=(1, 2, 2),
            num_blocks=1,
            latent_size=64,
            latent_width=32,
            head_outputs=32,
            head_width=128,
            chain=SemanticChainConfig(num_steps=30, sampling_steps=5),
            refinement=RefinementConfig(num_levels=10),
            learning_rate=1e-3,
            warmup_steps=100,
        ),
        data=DataConfig(source="npz:data/cifar10.npz", batch_size=32, flip=True),
        training=TrainingConfig(num_steps=2000, log_every=100, sample_every=500, checkpoint_every=500),
        evaluation=EvaluationConfig(num_samples=2000),
    )
