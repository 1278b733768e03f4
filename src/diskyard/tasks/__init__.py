"""What runs on this host: tasks of every process, their progress, and stopping them."""
