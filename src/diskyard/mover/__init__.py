"""Moving bytes: chains as QEMU opens them, merges, copies, imports and exports."""
