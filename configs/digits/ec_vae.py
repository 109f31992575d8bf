"""Energy-calibrated VAE on the bundled 8x8 digits: the demonstration, in minutes on a laptop.

Command:   jebm train configs/digits/ec_vae.py --workdir runs/digits
Hardware:  2 CPU cores, about three minutes with compilation and scores.
Expect:    readable digits; results/ec_vae_digits.md has the measured scores, beside those of the same VAE without
           calibration (--set method.calibration.dual_initial=0 --set method.calibration.dual_max=0).

Sizes, learning rates and the reuse of the calibrated samples as the energy's negatives are ours; the rest is as in
the released code of arXiv 2311.04071.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(
            image_size=8,
            channels=1,
            latent_size=16,
            encoder_width=16,
            decoder_width=4,
            energy_layers=((16, 1), (32, 1)),
            energy_head_width=128,
            energy_scales=1,
            vae_learning_rate=1e-3,
            energy_learning_rate=5e-4,
            reuse_negatives=True,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(
            num_steps=1000, log_every=50, sample_every=250, checkpoint_every=500, evaluate_at_end=True
        ),
        evaluation=EvaluationConfig(num_samples=2000),
    )
