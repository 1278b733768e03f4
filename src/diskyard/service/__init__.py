"""Running verbs on this host, for the Python client, ``diskyard call`` and HTTP."""

from diskyard.service.service import Service
from diskyard.service.verbs import VERBS, Verb, call, run

__all__ = ["VERBS", "Service", "Verb", "call", "run"]
