"""The local index: what a host has read of a log, kept so that it need not read all of it again.

It is a cache and nothing else (``docs/decisions/0018-local-index.md``).
"""
