"""EC-VAE on CelebA, 64x64 (arXiv 2311.04071).

Command:   jebm train configs/ec_vae/celeba64.py --workdir runs/ec_vae_celeba64
Data:      tfds:celeb_a ('jebm data info tfds:celeb_a' says what to bring): 162,770 images to train, 19,962 held out,
           the central 140x140 pixels of the aligned images, antialiased bilinear resize to 64. Scores
           depend on the crop: state it.
Hardware:  one GPU of 80 GB or a TPU slice. About 10 hours for 200,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (28 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 64 rows; 8: 8 rows each; 16: 4 rows each; 64: 1 row each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true; no microbatches, for its
           networks normalise by the statistics of the whole batch.
Expect:    faces within a few thousand iterations, then sharper. No score of the paper is promised.

From the released code: the 32 px networks that these extend, both Adams, K, s, τ, β, λ and its rate, and the energy's
layers, which stand there in a comment ("resnet64"). Ours, for no 64 px model was released: the decoder's last block,
one trunk for the energy, tolerance 0.20 and hinge 0.28 (by the rule of the noise floor, 0.18 here), batch 64, the
number of iterations, the average of the weights. The crop is another paper's (CLEL).
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig
from jebm.methods.ec.energy_networks import LAYERS_64


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(image_size=64, energy_layers=LAYERS_64, energy_scales=1, ema_decay=0.9999),
        data=DataConfig(source="tfds:celeb_a", crop="centre:140", batch_size=64, flip=True),
        training=TrainingConfig(num_steps=200_000, log_every=100, sample_every=5000, checkpoint_every=5000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
