"""The log: what exists, as transactions 0…N that put-if-absent orders (docs/format.md)."""
