"""Leases: who may work on what, held by the kernel or the storage, never by a record."""
