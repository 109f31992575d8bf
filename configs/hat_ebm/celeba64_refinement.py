"""Hat EBM refinement of an SN-GAN on CelebA, 64x64 (arXiv 2210.16486).

Command:   jebm convert hat-ebm --checkpoint gen.ckpt --config configs/hat_ebm/celeba64_refinement.py
               --out runs/hat_celeba64_refinement
           jebm train configs/hat_ebm/celeba64_refinement.py --workdir runs/hat_celeba64_refinement
Data:      tfds:celeb_a ('jebm data info tfds:celeb_a' says what to bring): 162,770 images to train, 19,962 held out,
           the central 178x178 pixels of the aligned images, antialiased bilinear resize to 64.
           gen.ckpt: the SN-GAN generator that the authors release; or --set method.generator=DIR, a run of ours.
Hardware:  one GPU. 214 TFLOP an iteration, from the operation count: about 7 hours at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Expect:    no score could be found, neither before nor after refinement; not measured here.

From the released code: all values of training and sampling. No prior acts on z, and tau = 0: chains are short-run
samplers, no density of (z, y) exists. Samples come from the raw weights, after 125 steps, without clip. Ours: a
generator of any other run may take the SN-GAN's place.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="refinement",
            generator="network",
            image_size=64,
            energy_width=1024,
            generator_width=1024,
            output_scale=1.0,
            temperature=1e-6,
            chain=ChainConfig(num_steps=100, noise_scale=1e-4, latent_noise_scale=5e-3, max_drift=2.5),
            test_chain=ChainConfig(
                num_steps=125, noise_scale=1e-4, latent_noise_scale=5e-3, residual_precision=0.0, max_drift=None
            ),
            energy_learning_rate=((1e-5, 0),),
        ),
        data=DataConfig(source="tfds:celeb_a", batch_size=128),
        training=TrainingConfig(num_steps=25_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
