"""Many processes at once, killed and suspended, on storage that has faults."""
