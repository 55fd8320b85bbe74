"""Trackers: what of a training and of a verdict goes to Weights & Biases and TensorBoard."""
