"""The verbs: they plan, make what must be made, commit, and say what remains to do."""
