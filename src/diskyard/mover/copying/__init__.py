"""Copying a view into a volume or file: only what differs, by several workers, resumably."""
