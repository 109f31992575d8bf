"""Hat EBM synthesis on CIFAR-10, 32x32, unconditional (arXiv 2210.16486).

Command:   jebm train configs/hat_ebm/cifar10_synthesis.py --workdir runs/hat_cifar10
Data:      tfds:cifar10 ('jebm data prepare tfds:cifar10' downloads it): 50,000 images to train, 10,000 held out. Or
           --set data.source=npz:data/cifar10.npz, an archive of uint8 x_train and x_test.
Hardware:  one GPU. 31 TFLOP an iteration, from the operation count: about 2 hours at an assumed 200 TFLOP/s.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true, or --set
           training.microbatches=4 on 1, 8 or 16.
Scores:    jebm evaluate DIR --metrics generation --num 49920 --reference train, as the paper's protocol has it.
Expect:    Frechet distance 19.30 is what the paper is reported to have; not measured here.

From the released code: networks, chains, learning rates, bank, data noise and clip of its training configuration.
It trains at T = 1e-8 but scores its released network at T = 1e-3. A hat is a model at one T only, so training and
sampling here share T = 1e-8, as on the other sets: at T = 1e-3 initial chains move 1e-6 a step, pure noise until H has
grown by four to five orders of magnitude. The other reading: --set method.temperature=1e-3.
Samples come from the raw weights, after 125 steps (2.5 times the training ones), without clip. Ours:
sampling at the T of training.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ChainConfig, HatEBMConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=HatEBMConfig(
            application="synthesis",
            image_size=32,
            energy_width=256,
            generator_width=256,
            temperature=1e-8,
            chain=ChainConfig(num_steps=50, noise_scale=5e-4, max_drift=2.5),
            test_chain=ChainConfig(num_steps=125, noise_scale=5e-4, max_drift=None, residual_start_scale=0.01),
            energy_learning_rate=((1e-4, 0),),
            generator_learning_rate=((1e-4, 0),),
        ),
        data=DataConfig(source="tfds:cifar10", batch_size=128),
        training=TrainingConfig(num_steps=50_000, log_every=50, sample_every=1000, checkpoint_every=1000),
        evaluation=EvaluationConfig(num_samples=49_920, batch_size=96),
    )
