"""Energy-calibrated generators (arXiv 2311.04071): VAE, flow and GAN, and the parts that calibrate any other."""

from jebm.methods.ec.calibration import CalibrationConfig as CalibrationConfig
from jebm.methods.ec.calibration import calibrate as calibrate
from jebm.methods.ec.calibration import calibration_loss as calibration_loss
from jebm.methods.ec.calibration import dual_start as dual_start
from jebm.methods.ec.calibration import dual_step as dual_step
from jebm.methods.ec.energy_model import EnergyModel as EnergyModel
from jebm.methods.ec.posterior import PosteriorCalibrationConfig as PosteriorCalibrationConfig
