"""Hat EBM refinement on the bundled 8x8 digits: a hat over the decoder of an energy-calibrated VAE stopped early.

Command:   jebm train configs/digits/ec_vae.py --workdir runs/digits_early --set training.num_steps=50
           jebm train configs/digits/hat_refinement.py --workdir runs/hat_refinement
(``--set method.generator=DIR method.latent_size=N`` for another generator.)
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment; few steps: with many the hat outgrows what its short chains can follow (results/hat_ebm.md)."""
    return Config(
        method=HatEBMConfig(
            application="refinement",
            generator="runs/digits_early",
            image_size=8,
            channels=1,
            latent_size=16,
            energy_width=32,
            temperature=1e-4,
            chain=ChainConfig(num_steps=20, latent_noise_scale=2e-2),
            test_chain=ChainConfig(num_steps=28, latent_noise_scale=2e-2, residual_precision=8.0, max_drift=None),
            energy_learning_rate=((3e-4, 0),),
        ),
        data=DataConfig(source="digits", batch_size=32),
        training=TrainingConfig(num_steps=80, log_every=10, sample_every=40, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=2000),
    )
