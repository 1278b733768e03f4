"""Where images are kept: one interface, and one package for each format."""
