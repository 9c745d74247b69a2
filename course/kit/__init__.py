"""The kit that installs the course without a network."""
