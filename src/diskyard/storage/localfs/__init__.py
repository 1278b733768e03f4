"""localfs-1.0: a directory of a local file system (layout in docs/format.md)."""
