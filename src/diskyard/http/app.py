"""The ASGI application: every verb, events, metrics, health, and their description."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from diskyard import errors
from diskyard.host.sockets import origin_of
from diskyard.http.access import Authenticator, Sender, peer_of
from diskyard.http.audited import AuditedCall, AuditTrail, about, is_audited, tasks_of
from diskyard.http.bulkheads import Bulkheads
from diskyard.http.connections import Connections, connection_of
from diskyard.http.exchange import Endpoint, Exchange, request_id_of
from diskyard.http.framing import Framing
from diskyard.http.limits import Limits, Rates
from diskyard.http.pages import Health, Pages
from diskyard.http.problems import problem_response
from diskyard.http.running import Answer, Asked, Verbs
from diskyard.http.sending import Releasing, Sending, streamed
from diskyard.http.streams import Streams, Wanted
from diskyard.model import requests as ask
from diskyard.model.verbs import VERBS, Access
from diskyard.service import Service

_log = logging.getLogger("diskyard.http")
_REFUSALS_PER_S = 5.0  # from one address, or for IPv6 from one network
_REFUSED_AFTER_S = 0.25
_SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Figures(Protocol):
    """Where requests are counted."""

    def observe(self, verb: str, code: str, seconds: float) -> None:
        """Count a verb that was answered with ``ok`` or with the code of an error."""

    def render(self) -> tuple[bytes, str]:
        """All figures, and their media type."""


class Application:
    """What the routes work with.

    :param authenticator: decides who is let in.
    :param figures: where requests are counted.
    :param audit: the record of who did what; None: there is none.
    """

    def __init__(
        self,
        service: Service,
        authenticator: Authenticator,
        limits: Limits,
        figures: Figures,
        audit: AuditTrail | None,
    ) -> None:
        self.service = service
        self.health = Health()
        self.streams = Streams(service.events, limits)
        self._authenticator = authenticator
        self._limits = limits
        self._figures = figures
        self._audit = audit
        self.connections = Connections(limits)
        self.bulkheads = Bulkheads(limits, service.supervisor.timeout_s)
        self._verbs = Verbs(service, self.bulkheads, limits)
        self._rates = Rates.of_requests(limits.requests_per_s)
        self._work = Rates.of_work(limits.work_ms_per_s)
        self._refusals = Rates.of_requests(_REFUSALS_PER_S)
        self._pages = Pages(service.host.identity.host_id, self.health)

    def asgi(self) -> Starlette:
        """The application, ready to be served."""
        get = ["GET"]
        routes = [
            Route("/v1/events", self._route(self._events), methods=get),
            Route("/v1/{verb}", self._route(self._call), methods=["POST"]),
            Route("/metrics", self._route(self._metrics), methods=get),
            Route("/healthz", self._route(self._pages.live), methods=get),
            Route("/healthz/live", self._route(self._pages.live), methods=get),
            Route("/healthz/ready", self._route(self._pages.ready), methods=get),
            Route("/openapi.json", self._route(self._pages.openapi), methods=get),
            Route("/docs", self._route(self._pages.docs), methods=get),
        ]
        app = Starlette(
            routes=routes,
            middleware=[
                Middleware(Sending, connections=self.connections),
                Middleware(Framing, refuse=self._unclear),
            ],
            exception_handlers={HTTPException: self._no_route},
        )
        app.router.redirect_slashes = False
        for route in routes:
            # Starlette adds HEAD to GET. For events that would open a stream that nobody reads.
            assert route.methods is not None
            route.methods.discard("HEAD")
        return app

    # -- every request ---------------------------------------------------------------------

    def _route(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            exchange = Exchange(request, request_id_of(request))
            try:
                response = await endpoint(exchange)
            except errors.DiskyardError as error:
                if isinstance(error, errors.InternalError):
                    _log.error("a defect, request %s", exchange.request_id, exc_info=error)
                if isinstance(error, errors.TooManyRequests) and request.scope["scheme"] == "https":
                    # A caller that tries again at once would keep the daemon busy with refusals.
                    await asyncio.sleep(_REFUSED_AFTER_S)
                response = self._problem(error, exchange.request_id)
            except Exception as error:  # noqa: BLE001 - the last resort: no traceback reaches a caller
                _log.exception("a defect, request %s", exchange.request_id)
                response = self._problem(errors.unexpected(error), exchange.request_id)
            response.headers["X-Request-ID"] = exchange.request_id
            for name, value in _SAFE_HEADERS.items():
                response.headers.setdefault(name, value)
            if exchange.is_last:
                response.headers["Connection"] = "close"
            return Releasing(response, exchange.held)

        return answer

    def _problem(
        self, error: errors.DiskyardError, request_id: str, *, status: int | None = None
    ) -> Response:
        return problem_response(error, request_id, self.service.host.identity.host_id, status=status)

    async def _no_route(self, request: Request, found: Exception) -> Response:
        """Answer an unknown path or method. A caller that tries many of them waits for each answer."""
        assert isinstance(found, HTTPException)
        if request.scope["scheme"] == "https":
            await asyncio.sleep(_REFUSED_AFTER_S)
        error = errors.InvalidParameter(
            f"There is no {request.method} {request.url.path!r:.100} here.",
            advice="The paths and their methods are in /openapi.json.",
        )
        return self._refused(request, error, found.status_code, found.headers)

    def _unclear(self, request: Request, why: str) -> Response:
        """Refuse a request whose end is unclear."""
        error = errors.InvalidParameter(why, advice="Send it again, and state its length once.")
        return self._refused(request, error, 400)

    def _refused(
        self,
        request: Request,
        error: errors.DiskyardError,
        status: int,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        request_id = request_id_of(request)
        response = self._problem(error, request_id, status=status)
        response.headers.update({**(headers or {}), **_SAFE_HEADERS, "X-Request-ID": request_id})
        return response

    def _admit(self, exchange: Exchange, access: Access, *, is_of_guests: bool = False) -> Sender:
        """Let the sender in.

        :param is_of_guests: let it in even if it has used up its share of work.
        :raises diskyard.errors.DiskyardError: Unauthorized, Forbidden or TooManyRequests.
        """
        try:
            sender = self._authenticator.admit(exchange.request, exchange.request_id)
        except errors.Unauthorized:
            self._refusals.take(origin_of(peer_of(exchange.request)))
            self._note(exchange, "", None, None, errors.Unauthorized.__name__)
            raise
        exchange.sender = sender
        actor = sender.caller.actor
        if sender.limited:
            self._rates.take(actor)
            if not is_of_guests:
                self._work.require(actor)
        connection = connection_of(exchange.request.scope)
        if connection is not None:
            exchange.is_last = True
            self.connections.use(connection, actor)
            exchange.is_last = False
        sender.require(access)
        return sender

    def _note(
        self,
        exchange: Exchange,
        verb: str,
        repository_id: str | None,
        image_id: str | None,
        outcome: str,
        task_ids: tuple[str, ...] = (),
    ) -> None:
        if self._audit is None:
            return
        self._audit.note(
            AuditedCall(
                request_id=exchange.request_id,
                actor="" if exchange.sender is None else exchange.sender.caller.actor,
                peer=peer_of(exchange.request),
                verb=verb,
                repository_id=repository_id,
                image_id=image_id,
                outcome=outcome,
                duration_s=time.monotonic() - exchange.began_s,
                task_ids=task_ids,
            )
        )

    # -- verbs -----------------------------------------------------------------------------

    async def _call(self, exchange: Exchange) -> Response:
        name = exchange.request.path_params["verb"]
        verb = VERBS.get(name)
        request: ask.Request | None = None
        outcome, answer = "ok", Answer(b"", None)
        try:
            is_of_guests = verb is not None and verb.is_of_guests
            access: Access = "read" if verb is None else verb.access
            sender = self._admit(exchange, access, is_of_guests=is_of_guests)
            exchange.held.enter_context(self.bulkheads.requests.take(sender.share))
            if verb is None:
                outcome = errors.InvalidParameter.__name__
                error = errors.InvalidParameter(
                    f"There is no verb {name!r:.80}.", advice=f"The verbs are: {', '.join(VERBS)}."
                )
                return self._problem(error, exchange.request_id, status=404)
            request = await self._decoded(exchange, verb.request)
            sender.require(verb.access_of(request))
            asked = Asked(request, sender.caller, sender.share, partial(self._charge, sender))
            answer = await self._verbs.run(asked, exchange.held)
        except errors.DiskyardError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = errors.InternalError.__name__
            raise
        finally:
            seconds = time.monotonic() - exchange.began_s
            self._figures.observe(name if verb is not None else "unknown", outcome, seconds)
            if exchange.sender is not None and is_audited(verb, request, outcome):
                tasks = tasks_of(request, exchange.sender)
                self._note(exchange, name, *about(request, answer), outcome, tasks)
        if answer.rest is not None:
            scope, request_id = exchange.request.scope, exchange.request_id
            return streamed(answer.first, answer.rest, scope, self.connections, request_id)
        headers = {}
        if sender.caller.started:
            headers["Diskyard-Tasks"] = ",".join(sender.caller.started)
        return Response(answer.first, headers=headers, media_type="application/json")

    def _charge(self, sender: Sender, work_ms: float) -> None:
        if sender.limited:
            self._work.charge(sender.caller.actor, work_ms)

    async def _decoded(self, exchange: Exchange, kind: type[ask.Request]) -> ask.Request:
        """The parameters of a verb.

        :raises diskyard.errors.DiskyardError: InvalidParameter or RequestTooLarge.
        """
        body = await self._body(exchange.request)
        media_type = exchange.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and media_type != "application/json":
            raise errors.InvalidParameter(
                f"The body is {media_type or 'of no type'!r:.80}, not application/json.",
                advice="Send the parameters as a JSON object, with Content-Type: application/json.",
            )
        try:
            return msgspec.json.decode(body or b"{}", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            name = exchange.request.path_params["verb"]
            raise errors.InvalidParameter(f"{name}: {error}.") from error

    async def _body(self, request: Request) -> bytes:
        most_bytes = self._limits.request_bytes
        too_large = errors.RequestTooLarge(f"A request's body is at most {most_bytes} bytes.")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > most_bytes:
            raise too_large
        parts = bytearray()

        async def read() -> None:
            async for part in request.stream():
                parts.extend(part)
                if len(parts) > most_bytes:
                    raise too_large

        try:
            await asyncio.wait_for(read(), self._limits.body_timeout_s)
        except TimeoutError:
            raise errors.InvalidParameter(
                f"The body did not arrive within {self._limits.body_timeout_s:g} seconds."
            ) from None
        except ClientDisconnect:  # nobody will read this, but it is counted
            raise errors.InvalidParameter("The connection ended before the body did.") from None
        return bytes(parts)

    # -- the rest ----------------------------------------------------------------------------

    async def _events(self, exchange: Exchange) -> Response:
        sender = self._admit(exchange, "read")
        query, headers = exchange.request.query_params, exchange.request.headers
        wanted = Wanted.parse(query.get("types"), query.get("repositoryId"))
        last = headers.get("last-event-id") or query.get("lastEventId")
        return self.streams.answer(wanted, sender, last)

    async def _metrics(self, exchange: Exchange) -> Response:
        sender = self._admit(exchange, "read")
        if sender.caller.repositories is not None:
            self._note(exchange, "metrics", None, None, errors.Forbidden.__name__)
            raise errors.Forbidden("The metrics cover all repositories, but the token is bound to some.")
        data, media_type, work_ms = await asyncio.to_thread(self._rendered)
        self._charge(sender, work_ms)
        return Response(data, headers={"Content-Type": media_type})

    def _rendered(self) -> tuple[bytes, str, float]:
        """All figures, their media type, and the milliseconds of processor time that they took."""
        began_s = time.thread_time()
        data, media_type = self._figures.render()
        return data, media_type, (time.thread_time() - began_s) * 1000
