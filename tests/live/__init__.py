"""The QEMU of a running guest: real programs without a guest in them, and monitors that misbehave."""
