"""Diskyard as the daemon of a host: configuration, listeners, logs, and the work that it does by itself."""
