"""What QEMU's programs do for the movers: block graphs, jobs, NBD."""
