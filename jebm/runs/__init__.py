"""Run directories: files, checkpoints, loading, sampling."""
