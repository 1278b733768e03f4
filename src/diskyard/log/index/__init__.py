"""The local index: what a host has read of a log, kept so that it need not be read whole again.

It is a cache and nothing else (``docs/decisions/0018-local-index.md``).
"""
