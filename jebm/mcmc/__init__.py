"""Kernels (`langevin`, and blackjax's `mala`, `hmc`, `nuts`) and the loop that runs them."""

from jebm.mcmc.chains import Kernel as Kernel
from jebm.mcmc.chains import chain_keys as chain_keys
from jebm.mcmc.chains import sample as sample
from jebm.mcmc.chains import sample_chains as sample_chains
from jebm.mcmc.chains import warn_of_lost_chains as warn_of_lost_chains
from jebm.mcmc.langevin import LangevinInfo as LangevinInfo
from jebm.mcmc.langevin import LangevinKernel as LangevinKernel
from jebm.mcmc.langevin import LangevinState as LangevinState
from jebm.mcmc.langevin import from_half_step as from_half_step
from jebm.mcmc.langevin import from_noise_scale as from_noise_scale
from jebm.mcmc.langevin import langevin as langevin
from jebm.mcmc.langevin import table_schedule as table_schedule
from jebm.mcmc.metropolis import hmc as hmc
from jebm.mcmc.metropolis import mala as mala
from jebm.mcmc.metropolis import nuts as nuts
from jebm.mcmc.tuning import Tuned as Tuned
from jebm.mcmc.tuning import short_run_step_size as short_run_step_size
from jebm.mcmc.tuning import tune_step_size as tune_step_size
