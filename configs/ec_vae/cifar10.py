"""EC-VAE on CIFAR-10, 32x32, unconditional (arXiv 2311.04071).

Command:   jebm train configs/ec_vae/cifar10.py --workdir runs/ec_vae_cifar10
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
Hardware:  one GPU of 80 GB or a TPU slice. About 10 hours for 100,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (51 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true; no microbatches, for its
           networks normalise by the statistics of the whole batch.
Expect:    blurry shapes within a few thousand iterations, then sharper; `calibration` settles a little above the
           tolerance of 0.05 while `dual` rises slowly from 30. No score of the paper is promised.

From the released code (a demonstration on STL-10): both networks, batch 128, both Adams, K, s, τ, β, λ and its rate,
the flip. Ours: its use on this set unchanged, the number of iterations, the average of the weights.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(ema_decay=0.9999),
        data=DataConfig(source="tfds:cifar10", batch_size=128, flip=True),
        training=TrainingConfig(num_steps=100_000, log_every=100, sample_every=5000, checkpoint_every=5000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
