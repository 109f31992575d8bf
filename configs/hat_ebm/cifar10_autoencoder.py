"""The deterministic autoencoder that Hat EBM retrofits on CIFAR-10, 32x32 (arXiv 2210.16486).

Command:   jebm train configs/hat_ebm/cifar10_autoencoder.py --workdir runs/hat_cifar10_autoencoder
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
Hardware:  one GPU. 4.9 TFLOP an iteration, from the operation count: about 20 minutes at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set training.microbatches=4 on 1, 8 or 16.
Expect:    sharp reconstructions and, from z ~ N(0, I), poor samples: that is what the retrofit is for.

From the released code: all values; its 100 "epochs" are 499 iterations each. Ours: the squared error of a
reconstruction as an energy, for outlier detection.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import HatAutoencoderConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatAutoencoderConfig(image_size=32, width=256, latent_noise=0.02, learning_rate=((1e-4, 0),)),
        data=DataConfig(source="tfds:cifar10", batch_size=128),
        training=TrainingConfig(num_steps=49_900, log_every=50, sample_every=2495, checkpoint_every=2495),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
