"""Energy-calibrated generators (arXiv 2311.04071): VAE, flow, GAN, posterior."""
