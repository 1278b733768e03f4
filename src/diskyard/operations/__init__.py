"""The verbs that change images: plan, make what must be made, commit, and say what remains."""
