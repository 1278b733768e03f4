"""All that forked processes of tests need, imported once: see :mod:`diskyard.testing.forking`."""

import gc
from importlib import import_module

for _name in ("asyncio", "encodings.ascii", "encodings.idna", "diskyard.service.whole"):
    import_module(_name)
for _name in ("cli.program", "daemon.daemon"):
    import_module(f"diskyard.{_name}")
for _name in ("crash", "daemon_process", "story_host"):
    import_module(f"diskyard.testing.{_name}")

# What is there by now is never garbage: looking for some in it would copy each page of it in each fork.
gc.collect()
gc.freeze()
