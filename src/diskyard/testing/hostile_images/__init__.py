"""Images that are malicious or just odd: each is refused, or imported as exactly its own bytes."""
