"""The tiny model: its procedural data set and its training."""
