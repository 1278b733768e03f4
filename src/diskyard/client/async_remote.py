# Made from remote.py by scripts/make_async: change that file, and run it again.
"""Calls over HTTP to a daemon. ``async_remote.py`` is made from this file (scripts/make_async)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from diskyard import errors
from diskyard.client import http_options as http
from diskyard.client.attempts import Attempts
from diskyard.client.values import Connected, EventType, OnProgress
from diskyard.client.wire import (
    REQUEST_ID_HEADER,
    TASKS_HEADER,
    Address,
    Answer,
    Call,
    EventLines,
    new_id_for,
    raw_call,
    typed_call,
)
from diskyard.model import requests as ask
from diskyard.model.results import Event, Task

_ENDED = ("done", "failed", "stopped")
_MANY = 16


class AsyncRemote:
    """A daemon. Safe to use from several threads.

    :param url: ``unix:///path/to.sock`` or ``https://host:port``.
    :param token: for https.
    :param ca_file: PEM file of the authorities to trust; the system's if not given.
    :param timeout_s: how long one call may take, with its repetitions.
    :param hands_over: see :class:`diskyard.client.Diskyard`.
    """

    def __init__(
        self, url: str, token: str | None, ca_file: str | None, timeout_s: float, *, hands_over: bool
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        address = Address.parse(url)
        self._http = httpx.AsyncClient(
            base_url=address.base,
            headers=http.headers(address, token),
            transport=http.async_transport(address, ca_file, hands_over=hands_over),
            trust_env=False,
        )
        self._started: deque[str] = deque(maxlen=http.STARTED_LIMIT)
        self._unfinished: dict[str, None] = {}
        self._has_answered = False

    async def close(self) -> None:
        """Close the connections. Work that the daemon does for this client goes on."""
        await self._http.aclose()

    # -- calls -------------------------------------------------------------------------

    async def run(self, kind: type[ask.Request], words: Mapping[str, Any]) -> Any:
        """Run a verb."""
        return await self._send(typed_call(kind, words, new_id_for(kind, words)))

    async def call(self, verb: str, parameters: Any) -> Any:
        """Run a verb by its name, even one that this client does not know."""
        return await self._send(raw_call(verb, parameters))

    async def _send(self, call: Call) -> Any:
        attempts = Attempts(call, self.url, self._timeout_s, has_answered=self._has_answered)
        while True:
            try:
                response = await self._http.post(
                    call.path,
                    content=call.body,
                    headers={"Content-Type": "application/json", REQUEST_ID_HEADER: call.request_id},
                    timeout=attempts.timeout(),
                )
            except httpx.HTTPError as error:
                pause_s: float | None = attempts.after_failure(error)
            else:
                self._has_answered = True
                answer = Answer(self.url, response.status_code, response.headers, response.content)
                pause_s = attempts.after_answer(answer)
                if pause_s is None:
                    self._note_started(answer)
                    return answer.decoded(call.result, call.lenient)
            await asyncio.sleep(pause_s or 0)

    def _note_started(self, answer: Answer) -> None:
        task_ids = [
            found for text in answer.headers.get(TASKS_HEADER, "").split(",") if (found := text.strip())
        ]
        self._started.extend(task_ids)
        self._unfinished.update(dict.fromkeys(task_ids))

    async def connected(self) -> Connected:
        """The daemon's connections. No storage is used."""
        info = await self.run(ask.GetHostInfo, {})
        return {found.repo_id: (found.repo_format, found.connection_parameters) for found in info.connections}

    # -- tasks -------------------------------------------------------------------------

    def take_started(self) -> list[str]:
        """The ids of the tasks started since the last call; if there were many, only the latest."""
        taken: list[str] = []
        while self._started:
            taken.append(self._started.popleft())
        return taken

    def unfinished(self) -> list[str]:
        """The ids of the tasks that have not ended, as far as this client knows."""
        return list(self._unfinished)

    async def wait(self, timeout_s: float | None, on_progress: OnProgress | None) -> bool:
        """Wait for the tasks that calls started."""
        await self._look(on_progress)
        if not self._unfinished:
            return True
        async with aclosing(self.watch(("task",), timeout_s)) as changes:
            async for event in changes:
                if event is None:
                    await self._look(on_progress)
                else:
                    self._note(http.task_of(event), on_progress)
                if not self._unfinished:
                    return True
        return False

    async def _look(self, on_progress: OnProgress | None) -> None:
        """Get the tasks that are not known to have ended."""
        waiting = list(self._unfinished)
        if len(waiting) > _MANY:
            for task in await self.run(ask.ListTasks, {}):
                self._note(task, on_progress)
            return
        for task_id in waiting:
            try:
                task = await self.run(ask.GetTask, {"taskId": task_id})
            except errors.TaskNotFound:
                self._unfinished.pop(task_id, None)  # it has ended, over a day ago
            else:
                self._note(task, on_progress)

    def _note(self, task: Task | None, on_progress: OnProgress | None) -> None:
        if task is None or task.task_id not in self._unfinished:
            return
        if task.state in _ENDED:
            self._unfinished.pop(task.task_id, None)
        if on_progress is not None:
            on_progress(task)

    # -- events ------------------------------------------------------------------------

    async def watch(
        self, types: Sequence[EventType], timeout_s: float | None
    ) -> AsyncGenerator[Event | None]:
        """Listen to events, and signal a check when some may have been missed.

        If there is no stream of events, or it is silent, the waiting caller checks by itself,
        less and less often: no event reports what a process beside the daemon does.
        """
        patience = http.Patience(timeout_s)
        lines = EventLines()
        while not patience.is_over():
            quiet_s = patience.quiet_s()
            try:
                async with self._stream(types, None, lines.last_id, quiet_s) as response:
                    patience.reached()
                    if response.status_code == 200:
                        yield None
                        async for line in response.aiter_lines():
                            event = lines.take(line)
                            if event is not None:
                                patience.heard()
                                yield None if event.kind == "reset" else event
                            if patience.is_short_of(quiet_s):
                                break
                await asyncio.sleep(patience.pause_s())
                if response.status_code != 200:
                    yield None
            except httpx.ReadTimeout:
                yield None  # a quiet stream: check, and listen again
            except httpx.HTTPError:
                await asyncio.sleep(patience.pause_s())
                if not patience.is_away():  # a daemon that is soon restarted reports the end itself
                    yield None

    async def events(
        self, types: Sequence[EventType], repository_id: str | None, last_event_id: str | None
    ) -> AsyncGenerator[Event]:
        """Events without end, from one connection to the next."""
        lines = EventLines(last_event_id)
        listening = http.Listening(self.url, self._timeout_s)
        while True:
            try:
                async with self._stream(types, repository_id, lines.last_id, http.DEAD_AFTER_S) as response:
                    if response.status_code == 200:
                        listening.works()
                        async for line in response.aiter_lines():
                            event = lines.take(line)
                            if event is not None:
                                yield event
                    else:
                        body = await response.aread()
                        listening.refused(Answer(self.url, response.status_code, response.headers, body))
            except httpx.HTTPError as error:
                listening.failed(error)
            await asyncio.sleep(listening.pause_s())

    def _stream(
        self, types: Sequence[str], repository_id: str | None, last_event_id: str | None, quiet_s: float
    ) -> Any:
        query = {"types": ",".join(types), "repositoryId": repository_id}
        return self._http.stream(
            "GET",
            "/v1/events",
            params={name: value for name, value in query.items() if value},
            headers={"Last-Event-ID": last_event_id} if last_event_id else {},
            timeout=httpx.Timeout(http.CONNECT_TIMEOUT_S, read=quiet_s),
        )
