"""Hat EBM refinement of an SN-GAN on CIFAR-10, 32x32 (arXiv 2210.16486).

Command:   jebm convert hat-ebm --checkpoint gen.ckpt --config configs/hat_ebm/cifar10_refinement.py
               --out runs/hat_cifar10_refinement
           jebm train configs/hat_ebm/cifar10_refinement.py --workdir runs/hat_cifar10_refinement
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
           gen.ckpt: the SN-GAN generator that the authors release; or --set method.generator=DIR, a run of ours.
Hardware:  one GPU. 494 TFLOP an iteration, from the operation count: about 17 hours at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Expect:    no score could be found, neither before nor after refinement; not measured here.

From the released code: all values of training and sampling. No prior acts on z, and in training tau = 0: chains are
short-run samplers, no density of (z, y) exists. Samples come from the raw weights, after 350 steps, without clip, with
tau = 1/(2 0.25^2) = 8. Ours: a generator of any other run may take the SN-GAN's place.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="refinement",
            generator="network",
            image_size=32,
            energy_width=256,
            generator_width=256,
            output_scale=1.0,
            temperature=1e-3,
            chain=ChainConfig(num_steps=250, noise_scale=1e-4, latent_noise_scale=5e-3, max_drift=2.5),
            test_chain=ChainConfig(
                num_steps=350, noise_scale=1e-4, latent_noise_scale=5e-3, residual_precision=8.0, max_drift=None
            ),
            energy_learning_rate=((1e-5, 0),),
        ),
        data=DataConfig(source="tfds:cifar10", batch_size=128),
        training=TrainingConfig(num_steps=25_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
