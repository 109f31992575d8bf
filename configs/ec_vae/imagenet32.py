"""EC-VAE on ImageNet at 32x32, unconditional (arXiv 2311.04071).

Command:   jebm train configs/ec_vae/imagenet32.py --workdir runs/ec_vae_imagenet32
Data:      tfds:imagenet_resized/32x32 ('jebm data info SOURCE': what to bring): 1,281,167 images to train, 50,000 held
           out. tfds:downsampled_imagenet/32x32, the set of likelihoods, holds other images: say which.
Hardware:  one GPU of 80 GB or a TPU slice. About 30 hours for 300,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (51 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true; no microbatches, for its
           networks normalise by the statistics of the whole batch.
Expect:    textures and layouts before objects; 300,000 iterations are 30 passes over the set. No score of the paper
           is promised.

From the released code (a demonstration on STL-10): both networks, batch 128, both Adams, K, s, τ, β, λ and its rate,
the flip. Ours: its use on this set unchanged, the number of iterations, the average of the weights.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(ema_decay=0.9999),
        data=DataConfig(source="tfds:imagenet_resized/32x32", batch_size=128, flip=True),
        training=TrainingConfig(num_steps=300_000, log_every=100, sample_every=10_000, checkpoint_every=10_000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
