"""Copying a view into a volume or file: what differs, by several workers, resumably."""
