"""What runs on this host: the tasks of every process, their progress, and stopping them."""
