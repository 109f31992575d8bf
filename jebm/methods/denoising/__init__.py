"""Denoising-EBM (arXiv 2303.03887), reconstructed."""
