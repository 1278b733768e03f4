"""Attachments: what a guest's QEMU or libvirt is given, and the record that it is in use."""
