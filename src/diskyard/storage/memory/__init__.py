"""memory-1.0: a repository that ends with its process, for tests and for trying things out."""
