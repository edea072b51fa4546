"""The workshop: data, models, checkpoints and the training loop around the method."""
