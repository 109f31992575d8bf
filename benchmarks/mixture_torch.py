"""torchebm's Langevin sampler for `mixture.py`: runs once for each line on its input, and writes seconds.

python mixture_torch.py GIVEN.npz NUM_STEPS STEP_SIZE
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

path, num_steps, step_size = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
given = {name: torch.tensor(a) for name, a in np.load(path).items()}


class Mixture(BaseModel):
    """The energy of `jebm.problems.gaussian_mixture`."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """E of x, [n, 2]."""
        squared = ((x[:, None] - given["means"]) ** 2).sum(-1) / given["deviations"] ** 2
        log_terms = torch.log(given["weights"]) - 0.5 * squared - 2 * torch.log(given["deviations"])
        return -torch.logsumexp(log_terms, -1)


sampler = LangevinDynamics(model=Mixture(), step_size=step_size, noise_scale=1.0)
for _ in sys.stdin:
    wall, processor = time.perf_counter(), time.process_time()
    end = sampler.sample(x=given["start"].clone(), n_steps=num_steps)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    np.save(path.with_name("end.npy"), end.numpy())
    print(json.dumps(seconds), flush=True)
