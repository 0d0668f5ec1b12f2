"""A trained network made ready for use: fused, and as a file of its own."""
