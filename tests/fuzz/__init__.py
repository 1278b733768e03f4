"""Random operations beside a model in memory."""
