"""Pictures with depth to train on, each source an indexable sequence of `Sample`."""
