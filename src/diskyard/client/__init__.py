"""The Python form of the API: the verbs as methods, in snake_case."""
