"""Denoising-EBM on the bundled 8x8 digits: two-stage sampling, in minutes on a laptop.

Command:   jebm train configs/digits/denoising_ebm.py --workdir runs/digits_denoising
Hardware:  2 CPU cores; some minutes.
Expect:    blurred digits as semantic images, sharper ones after refinement; figures in results/denoising_ebm.md.

Everything but the idea is ours (see `jebm.methods.denoising.ebm`): no number here is the paper's.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import DenoisingEBMConfig
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=DenoisingEBMConfig(
            image_size=8,
            channels=1,
            width=16,
            multipliers=(1, 2),
            num_blocks=1,
            latent_size=16,
            latent_width=16,
            head_outputs=32,
            head_width=128,
            chain=SemanticChainConfig(num_steps=30, sampling_steps=5),
            refinement=RefinementConfig(num_levels=10),
            learning_rate=1e-3,
            warmup_steps=100,
        ),
        data=DataConfig(source="digits", batch_size=32),
        training=TrainingConfig(
            num_steps=1500, log_every=100, sample_every=500, checkpoint_every=1000, evaluate_at_end=True
        ),
        evaluation=EvaluationConfig(num_samples=2000),
    )
