"""Pure values: images, volumes, attachments, the state that they make up, and what it means."""
