"""Copies, differences and exports beside what changes their sources."""
