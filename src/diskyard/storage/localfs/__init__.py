"""localfs-1.0: a folder of a local file system (layout in docs/format.md)."""
