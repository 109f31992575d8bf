"""Energy-calibrated generators (arXiv 2311.04071): VAE, flow and GAN, and the parts that calibrate any other."""
