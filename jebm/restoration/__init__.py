"""Zero-shot restoration of degraded images: linear operators with exact pseudo-inverses, and the sampler."""

from jebm.restoration.composition import Composition as Composition
from jebm.restoration.composition import compose as compose
from jebm.restoration.operators import Colorization as Colorization
from jebm.restoration.operators import Inpainting as Inpainting
from jebm.restoration.operators import Matrix as Matrix
from jebm.restoration.operators import Operator as Operator
from jebm.restoration.operators import Separable as Separable
from jebm.restoration.operators import WalshHadamard as WalshHadamard
from jebm.restoration.operators import average_pooling as average_pooling
from jebm.restoration.operators import bicubic as bicubic
from jebm.restoration.operators import blur as blur
from jebm.restoration.operators import box_mask as box_mask
from jebm.restoration.operators import gaussian_kernel as gaussian_kernel
from jebm.restoration.operators import random_mask as random_mask
from jebm.restoration.operators import uniform_kernel as uniform_kernel
from jebm.restoration.run_prior import prior as prior
from jebm.restoration.sampler import Prior as Prior
from jebm.restoration.sampler import RestorationConfig as RestorationConfig
from jebm.restoration.sampler import Restored as Restored
from jebm.restoration.sampler import latent_potential as latent_potential
from jebm.restoration.sampler import restore as restore
