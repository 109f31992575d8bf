"""Hat EBM retrofit on the bundled 8x8 digits: the decoder of hat_autoencoder.py becomes a generator.

Command:   jebm train configs/digits/hat_autoencoder.py --workdir runs/hat_autoencoder
           jebm train configs/digits/hat_retrofit.py --workdir runs/hat_retrofit
(``--set method.generator=DIR`` for an autoencoder elsewhere.)
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment; T and both noise scales are larger than at 32 px, since codes of 16 numbers have to move far.

    Few steps, since with many the hat outgrows what its short chains can follow (results/hat_ebm.md).
    """
    return Config(
        method=HatEBMConfig(
            application="retrofit",
            generator="runs/hat_autoencoder",
            image_size=8,
            channels=1,
            energy_width=32,
            temperature=1e-4,
            chain=ChainConfig(num_steps=20, latent_noise_scale=2e-2, residual_precision=50.0),
            test_chain=ChainConfig(
                num_steps=28, latent_noise_scale=2e-2, residual_precision=50.0, max_drift=None,
                residual_start_scale=0.01,
            ),
            energy_learning_rate=((3e-4, 0),),
            data_noise=1e-2,
        ),
        data=DataConfig(source="digits", batch_size=32),
        training=TrainingConfig(num_steps=80, log_every=10, sample_every=40, evaluate_at_end=True),
        evaluation=EvaluationConfig(num_samples=2000),
    )  # fmt: skip
