"""Networks of the papers, Flax Linen modules over images [..., H, W, C]."""

from jebm.networks.ec_vae import Decoder as Decoder
from jebm.networks.ec_vae import Encoder as Encoder
from jebm.networks.ec_vae_256 import Encoder256 as Encoder256
from jebm.networks.ec_vae_256 import Generator256 as Generator256
from jebm.networks.energy_nets import MSResNet as MSResNet
from jebm.networks.energy_nets import ResNet as ResNet
