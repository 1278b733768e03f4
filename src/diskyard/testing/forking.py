"""Where tests fork processes from: one server for all of them, which has everything imported and no threads.

A process has one such server, whatever in it forks; what the server has not imported, each fork imports anew.
"""

from __future__ import annotations

import multiprocessing

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["diskyard.testing.preloaded"])
