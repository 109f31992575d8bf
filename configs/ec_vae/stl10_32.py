"""EC-VAE on STL-10 at 32x32, unconditional (arXiv 2311.04071): the released demonstration.

Command:   jebm train configs/ec_vae/stl10_32.py --workdir runs/ec_vae_stl10_32
Data:      tfds:stl10 ('jebm data prepare tfds:stl10' downloads it): the 105,000 `train` and `unlabelled` images,
           antialiased bilinear resize from 96 to 32 pixels; the 8,000 `test` images are held out.
Hardware:  one GPU of 80 GB or a TPU slice. About 10 hours for 100,000 iterations on an H100-class GPU; this is
           an estimate from the operation count (51 TFLOP an iteration at an assumed 150 TFLOP/s), not a measurement.
Devices:   1: 128 rows; 8: 16 rows each; 16: 8 rows each; 64: 2 rows each. The batch stays, so the learning rate does;
           training.fsdp=1 on all. Where memory is short, --set method.rematerialize=true; no microbatches, for its
           networks normalise by the statistics of the whole batch.
Expect:    blurry shapes within a few thousand iterations, then sharper; `calibration` settles a little above the
           tolerance of 0.05 while `dual` rises slowly from 30. No score of the paper is promised.

From the released code: every value of the method but two, the batch and the flip. Ours: one power iteration of the
spectral norm an iteration instead of one at each evaluation (method.power_iterations=per_evaluation gives that), the
average of the weights, and the number of iterations; the released loop never ends and averages nothing.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig
from jebm.methods.ec.calibration import CalibrationConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=ECVAEConfig(ema_decay=0.9999, calibration=CalibrationConfig(tolerance=0.05, hinge=0.07)),
        data=DataConfig(source="tfds:stl10", batch_size=128, flip=True),
        training=TrainingConfig(num_steps=100_000, log_every=100, sample_every=5000, checkpoint_every=5000),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
