"""Images that mean harm or are merely odd: each is refused, or imported as exactly its own bytes."""
