"""Hat EBM retrofit of a deterministic autoencoder on CIFAR-10, 32x32 (arXiv 2210.16486).

Command:   jebm train configs/hat_ebm/cifar10_autoencoder.py --workdir runs/hat_cifar10_autoencoder
           jebm train configs/hat_ebm/cifar10_retrofit.py --workdir runs/hat_cifar10_retrofit
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
Hardware:  one GPU. 309 TFLOP an iteration, from the operation count: about 11 hours at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Expect:    no score could be found; not measured here.

From the released code: all values; tau = 1/(2 0.1^2) = 50 in training and in sampling, data noise 1e-2. Samples come
from the raw weights, after 125 steps, without clip. No prior acts on z, nor is it put back on the sphere, so no density
of (z, y) exists. Ours: the reading of the data.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="retrofit",
            generator="runs/hat_cifar10_autoencoder",
            image_size=32,
            energy_width=256,
            generator_width=256,
            temperature=1e-3,
            chain=ChainConfig(
                num_steps=100, noise_scale=5e-4, latent_noise_scale=1e-3, residual_precision=50.0, max_drift=2.5
            ),
            test_chain=ChainConfig(
                num_steps=125,
                noise_scale=5e-4,
                latent_noise_scale=1e-3,
                residual_precision=50.0,
                max_drift=None,
                residual_start_scale=0.01,
            ),
            energy_learning_rate=((1e-4, 0),),
            data_noise=1e-2,
        ),
        data=DataConfig(source="tfds:cifar10", batch_size=128),
        training=TrainingConfig(num_steps=25_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
