"""Pictures with depth to train on, each source an indexable sequence of `Sample`."""

from training.data.opening import open_sources as open_sources
