"""Energy matching on the bundled 8x8 digits: a flow of optimal transport, then contrast with chains.

Command:   jebm train configs/digits/energy_matching.py --workdir runs/matching
Hardware:  1 CPU core, some minutes.
Expect:    digits, nearly all readable. These very settings have not been run from the start. Seed 0, once, 2,500 and 300
           iterations with λ = 0.02, chains of 40 steps and samples of 30: Frechet distance 7.5 in the digit classifier's
           features (held-out digits 5.5), precision 0.93, recall 0.85; the energy tells uniform noise, constant and
           shuffled images from digits (AUROC 1.00), interpolations at 0.90. Distances to the *training* images at 30, 80
           and 160 steps were then 3.4, 9.9 and 20.3; after 400 iterations more with λ = 0.1 and chains of 60 steps, as
           here, 4.0, 2.4 and 3.4: longer chains no longer leave the data.

λ, the lengths of chains and of samples were chosen by distances to training images. The paper has no such experiment:
dense layers, steps of Δt = 0.05, λ, lengths of both phases are ours.
"""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import EnergyMatchingConfig


def get_config() -> Config:
    """The experiment."""
    return Config(
        method=EnergyMatchingConfig(
            image_size=8,
            channels=1,
            network="dense",
            width=512,
            num_blocks=2,
            warmup_steps=2500,
            contrastive_weight=0.1,
            temperature=0.01,
            step_size=0.05,
            num_steps=60,
            generate_steps=60,
            learning_rate=1e-3,
            ema_decay=0.998,
        ),
        data=DataConfig(source="digits", batch_size=64),
        training=TrainingConfig(
            num_steps=3200, log_every=100, sample_every=500, checkpoint_every=500, evaluate_at_end=True
        ),
        evaluation=EvaluationConfig(num_samples=1000),
    )
