"""EC-VAE on CelebA-HQ, 256x256 (arXiv 2311.04071).

Command:   jebm train configs/ec_vae/celebahq256.py --workdir runs/ec_vae_celebahq256
Data:      tfds:celeb_a_hq/256 ('jebm data info SOURCE': what to bring): 30,000 images, of which 27,000 train and 3,000
           in a fixed random order are held out.
Hardware:  one GPU of 80 GB or a TPU slice. About 20 hours for 200,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (10 TFLOP an iteration) at an assumed 30 TFLOP/s, thin layers on
           large maps being slow, and no measurement.
Devices:   1: 16 rows; 8: 2 rows each; 16: 1 row each; 64 do not divide the batch. The batch stays, so the learning
           rate does; training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true; no microbatches,
           for its networks normalise by the statistics of the whole batch.
Expect:    faces after some ten thousand iterations. This is the least certain of the experiments: the 256 px model
           was never released whole. No score of the paper is promised.

From the released code: the FastGAN-style encoder and generator, which stand there without the VAE around them; both
Adams, K, s, τ, β, λ and its rate. Ours: the two made a VAE, the energy (one trunk of seven stages from 32 channels),
tolerance 3.2 and hinge 4.5 (by the rule of the noise floor, 2.9 here), batch 16, the number of iterations, the
average of the weights.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(
            image_size=256,
            encoder_width=64,
            energy_layers=((32, 1), (64, 1), (128, 1), (128, 1), (256, 1), (256, 1), (256, 1)),
            energy_scales=1,
            ema_decay=0.9999,
        ),
        data=DataConfig(source="tfds:celeb_a_hq/256", batch_size=16, flip=True),
        training=TrainingConfig(
            num_steps=200_000, log_every=100, sample_every=5000, checkpoint_every=5000, num_samples=16
        ),
        evaluation=EvaluationConfig(num_samples=30_000, batch_size=50),
    )
