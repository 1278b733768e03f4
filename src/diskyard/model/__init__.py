"""Pure values: images, volumes, attachments, the state they make, and what it means."""
