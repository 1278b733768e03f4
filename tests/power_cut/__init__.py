"""Power cuts at every moment of every operation and fix."""
