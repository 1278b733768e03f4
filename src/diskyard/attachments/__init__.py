"""Attachments: what a guest's QEMU or libvirt is given, and that it is in use."""
