"""The Python form of the API: the verbs as methods, in snake_case."""

from diskyard.client.yard import Diskyard

__all__ = ["Diskyard"]
