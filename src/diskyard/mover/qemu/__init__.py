"""What QEMU's programs are asked to do: block graphs, jobs, NBD."""
