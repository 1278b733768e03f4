"""What anybody may read: the daemon's health, and the pages that describe its API."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from diskyard.host.sockets import origin_of
from diskyard.http import openapi, reference
from diskyard.http.access import peer_of
from diskyard.http.exchange import Exchange
from diskyard.http.limits import Rates
from diskyard.version import version

_PAGES_PER_S = 5.0  # from one address, or for IPv6 from one network
_PROBES_PER_S = 20.0  # the same


@dataclass(slots=True)
class Health:
    """The daemon's health. Storage plays no part in it.

    :ivar ready: the daemon listens everywhere, and is not about to end.
    """

    ready: bool = False
    stopping: bool = False


class Pages:
    """Answers that need no token. Over TCP there is a limit for each address.

    :param host_id: of this host.
    """

    def __init__(self, host_id: str, health: Health) -> None:
        self._host_id = host_id
        self._health = health
        self._pages = Rates.of_requests(_PAGES_PER_S)
        self._probes = Rates.of_requests(_PROBES_PER_S)

    async def live(self, exchange: Exchange) -> Response:
        """Answer that the process runs."""
        return self._told(exchange, 200)

    async def ready(self, exchange: Exchange) -> Response:
        """Answer whether the daemon accepts requests."""
        return self._told(exchange, 200 if self._is_ready else 503)

    async def openapi(self, exchange: Exchange) -> Response:
        """The description for programs."""
        _count(self._pages, exchange.request)
        return Response(openapi.encoded(), media_type="application/json")

    async def docs(self, exchange: Exchange) -> Response:
        """The same for people."""
        _count(self._pages, exchange.request)
        headers = {"Content-Security-Policy": reference.CONTENT_SECURITY_POLICY}
        return Response(reference.encoded(), headers=headers, media_type="text/html")

    @property
    def _is_ready(self) -> bool:
        return self._health.ready and not self._health.stopping

    def _told(self, exchange: Exchange, status: int) -> Response:
        _count(self._probes, exchange.request)
        words = {"live": True, "ready": self._is_ready, "hostID": self._host_id, "version": version()}
        return Response(msgspec.json.encode(words), status, media_type="application/json")


def _count(rates: Rates, request: Request) -> None:
    if request.scope["scheme"] == "https":
        rates.take(origin_of(peer_of(request)))
