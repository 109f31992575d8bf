"""Metrics: numbers from arrays. Nothing here knows a model."""
