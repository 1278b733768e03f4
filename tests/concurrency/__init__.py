"""Threads and processes at the same images."""
