"""Diskyard as a daemon of a host: configuration, listeners, logs, what it does by itself."""
