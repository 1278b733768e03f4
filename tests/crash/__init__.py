"""Crashes at every step of every operation and fix."""
