"""Denoising-EBM on CIFAR-10, 32x32, unconditional (after arXiv 2303.03887).

Command:   jebm train configs/denoising_ebm/cifar10.py --workdir runs/denoising_cifar10
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
Hardware:  one GPU of 80 GB or a TPU slice. About 2 hours for 300,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (2.4 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Expect:    unknown: not trained at this size. Sizes, formulas and scores of the paper are not at hand, so this is no
           replication, and no score of the paper is promised. A sample costs 20 gradients of the semantic energy, on
           latents, and 19 evaluations of the U-Net; `--set method.sampling=texture_only` starts from noise instead.

From the released codes of neighbouring methods: the widths and K = 30, for chains on pixels b² = 2e-4 (DRL), the
head's 128 numbers (CLEL), batch, learning rate, average and iterations (NCSNv2), the energies' L2 (IGEBM;
its weight is ours).
The texture ladder begins at 50, NCSNv2's rule for this set (arXiv 2006.09011, technique 1); the flow is that of Karras
et al. (arXiv 2206.00364). Ours: everything else, see `jebm.methods.denoising.ebm`.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import DenoisingEBMConfig
from jebm.methods.denoising.chains import RefinementConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=DenoisingEBMConfig(
            sigma_max=50.0,
            semantic_sigma_max=1.0,
            refinement=RefinementConfig(solver="heun", num_levels=10),
            dtype="bfloat16",
            ema_decay=0.9995,
            learning_rate=2e-4,
        ),
        data=DataConfig(source="tfds:cifar10", batch_size=128, flip=True, dequantize=True),
        training=TrainingConfig(num_steps=300_000, log_every=100, sample_every=5000, checkpoint_every=5000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
