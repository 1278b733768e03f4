"""Whatever stands on the storage: detected, named, survived, and nothing else is touched."""
