"""The QEMU process of a running guest: who it is, what it reads now, and how its disks are switched.

It knows nothing of repositories and their log: callers say which nodes they mean, and decide what follows.
"""
