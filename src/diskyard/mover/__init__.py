"""Moving bytes between volumes: by sharing blocks, by QEMU's jobs, or extent by extent."""
