"""Shipped tests: what every repository format must pass, faults to inject, and a model to compare with."""
