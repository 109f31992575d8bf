"""Hat EBM synthesis on CelebA, 64x64 (arXiv 2210.16486).

Command:   jebm train configs/hat_ebm/celeba64_synthesis.py --workdir runs/hat_celeba64
Data:      tfds:celeb_a ('jebm data info tfds:celeb_a' says what to bring): 162,770 images to train, 19,962 held out,
           the central 178x178 pixels of the aligned images, antialiased bilinear resize to 64.
Hardware:  one GPU. 32 TFLOP an iteration, from the operation count: about 2 hours at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Scores:    jebm evaluate DIR --metrics generation --num 49920 --reference train, as the paper's protocol has it.
Expect:    Frechet distance 11.57 is what the paper is reported to have; not measured here.

From the released code: all values of training and sampling. Samples come from the raw weights, after 100 steps,
without clip. Ours: the reading of the data.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="synthesis",
            image_size=64,
            energy_width=1024,
            generator_width=1024,
            temperature=1e-8,
            chain=ChainConfig(num_steps=50, noise_scale=5e-4, max_drift=2.5),
            test_chain=ChainConfig(num_steps=100, noise_scale=5e-4, max_drift=None, residual_start_scale=0.01),
            energy_learning_rate=((1e-4, 0),),
            generator_learning_rate=((1e-4, 0),),
        ),
        data=DataConfig(source="tfds:celeb_a", batch_size=128),
        training=TrainingConfig(num_steps=50_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
