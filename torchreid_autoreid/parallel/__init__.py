"""Several processes: their group, how they start, and batch norm over all of them."""
