"""Attachments: what a guest's QEMU or libvirt is given, and serving images over NBD."""
