"""Programs that make what the repository ships: the tiny model, its data and the pictures."""
