"""What can be built: operations, cells, networks."""
