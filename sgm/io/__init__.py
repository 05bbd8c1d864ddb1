"""Files: pictures, masks and checkpoints."""
