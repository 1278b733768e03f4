"""The log: what exists, as transactions 0…N, which put-if-absent orders (docs/format.md)."""
