"""Denoising-EBM on CelebA, 64x64 (after arXiv 2303.03887).

Command:   jebm train configs/denoising_ebm/celeba64.py --workdir runs/denoising_celeba64
Data:      tfds:celeb_a ('jebm data info tfds:celeb_a' says what to bring): 162,770 images to train, 19,962 held out,
           the central 140x140 pixels of the aligned images, antialiased bilinear resize to 64.
Hardware:  one GPU of 80 GB or a TPU slice. About 4 hours for 210,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (9 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Expect:    unknown. Sizes, formulas and scores of the paper are not at hand, so this is no replication, and no score of
           the paper is promised. A sample costs 20 gradients of the semantic energy, on latents, and
           786 evaluations of the U-Net.

From the released codes of neighbouring methods: the widths and K = 30, for chains on pixels b² = 2e-4 (DRL), the
head's 128 numbers (CLEL), batch, learning rate, average and iterations (NCSNv2), the energies' L2 (IGEBM;
its weight is ours), the crop.
The ladders follow the rules of NCSNv2 (arXiv 2006.09011). Ours: everything else, see `jebm.methods.denoising.ebm`.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import DenoisingEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=DenoisingEBMConfig(image_size=64, multipliers=(1, 2, 2, 2, 4), latent_size=64),
        data=DataConfig(source="tfds:celeb_a", crop="centre:140", batch_size=128, flip=True, dequantize=True),
        training=TrainingConfig(num_steps=210_000, log_every=100, sample_every=5000, checkpoint_every=5000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
