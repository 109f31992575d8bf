"""Writes sets of TensorFlow Datasets from their original files, without TensorFlow."""
