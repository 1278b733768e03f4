"""One connected repository, and all that are connected on this host."""
