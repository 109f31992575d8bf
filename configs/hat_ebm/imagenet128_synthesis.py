"""Hat EBM synthesis on ImageNet, 128x128, unconditional (arXiv 2210.16486).

Command:   jebm train configs/hat_ebm/imagenet128_synthesis.py --workdir runs/hat_imagenet128
Data:      tfds:imagenet2012 ('jebm data info SOURCE': what to bring): 1,281,167 images to train, 50,000 held out; short
           side antialiased to 128, a random crop in training, the centre elsewhere. --set data.workers=16 decodes in
           processes.
Hardware:  8 GPUs or a TPU slice of 8, as the authors say.
           137 TFLOP an iteration, from the operation count, about 57 hours at an assumed 200 TFLOP/s in all.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Scores:    jebm evaluate DIR --metrics generation --num 49920 --reference train, as the paper's protocol has it.
Expect:    no score of this width is published.

From the released code: networks, chains, learning rates that fall at 230k and 260k, and the bound of 50 on each
tensor's gradient, which with its factor 1/T is always at work. Samples come from the raw weights, after 150 steps,
without clip. Ours: the reading of the data.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="synthesis",
            image_size=128,
            energy_width=1024,
            generator_width=1024,
            temperature=1e-8,
            chain=ChainConfig(num_steps=50, noise_scale=5e-4, max_drift=2.5),
            test_chain=ChainConfig(num_steps=150, noise_scale=5e-4, max_drift=None, residual_start_scale=0.01),
            energy_learning_rate=((1e-4, 0), (1e-5, 230_000), (1e-6, 260_000)),
            generator_learning_rate=((5e-5, 0), (1e-5, 230_000), (1e-6, 260_000)),
            energy_gradient_clip=50.0,
        ),
        data=DataConfig(source="tfds:imagenet2012", batch_size=128),
        training=TrainingConfig(num_steps=300_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
