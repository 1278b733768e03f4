"""Names that become links between a look at them and their use."""
