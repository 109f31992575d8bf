"""Hat EBM (arXiv 2210.16486): synthesis, refinement, retrofit."""
