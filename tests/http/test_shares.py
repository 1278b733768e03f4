"""What all callers share, and that none of them takes all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from diskyard.caller import Share
from diskyard.daemon.caretaker import Caretaker
from diskyard.daemon.config import Config, LimitsConfig
from diskyard.daemon.daemon import make_application
from diskyard.daemon.tokens import Tokens
from diskyard.errors import TooManyRequests
from diskyard.http.app import Application
from diskyard.http.limits import Rates, Shared
from diskyard.service import Service, call
from diskyard.testing.daemon_process import DaemonProcess


def taken(shared: Shared, share: Share, held: ExitStack) -> int:
    """How many one caller gets."""
    count = 0
    while True:
        try:
            held.enter_context(shared.take(share))
        except TooManyRequests:
            return count
        count += 1


def test_a_token_gets_a_quarter_and_all_tokens_leave_one() -> None:
    shared = Shared(16, "requests are under way")
    with ExitStack() as held:
        assert [taken(shared, Share(f"token:{name}", True), held) for name in "abcd"] == [4, 4, 4, 0]
        assert taken(shared, Share("user:root", False), held) == 4
        assert shared.count == 16
    assert shared.count == 0
    with ExitStack() as held:
        assert taken(shared, Share("user:root", False), held) == 16


def test_of_very_few_each_gets_one() -> None:
    shared = Shared(1, "streams of events are open")
    with ExitStack() as held:
        assert taken(shared, Share("token:a", True), held) == 1


def test_head_is_no_method_of_events(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        for path in ("/v1/events", "/healthz", "/metrics"):
            answer = client.head(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


# -- work that a token owes --------------------------------------------------------------------

Ask = Callable[[str, str, dict[str, Any]], Awaitable[httpx.Response]]
_MANAGER = "token:manager"


class _StillClock:
    """A clock of which no time passes: nothing that is owed is paid."""

    def __call__(self) -> float:
        return 100.0


def over_tls(folder: Path, use: Callable[[Application, Ask], Awaitable[None]]) -> None:
    """Ask an application as a caller with a token does, of which the work is counted."""
    service = Service(state_folder=str(folder / "state"))
    limits = LimitsConfig(requests_per_s=0)
    app = make_application(
        Config(state_dir=str(folder / "state"), limits=limits), service, None, Caretaker(service, ())
    )
    app._work = Rates.of_work(limits.work_ms_per_s, _StillClock())
    place = {"path": str(folder / "place")}
    (folder / "place").mkdir()
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": place}
    call(service, "createStorageRepository", asked)
    call(service, "connectStorageRepository", {"repoId": "a", **asked})
    _, token = Tokens(str(folder / "state")).create("manager", "admin", None, None)

    async def attempt() -> None:
        headers = {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app.asgi())
        async with httpx.AsyncClient(transport=transport, base_url="https://d", headers=headers) as client:

            async def ask(method: str, path: str, words: dict[str, Any]) -> httpx.Response:
                return await client.request(method, path, json=words if method == "POST" else None)

            await use(app, ask)

    try:
        asyncio.run(attempt())
    finally:
        service.close()


def owed_ms(app: Application) -> float:
    return -app._work._now_left(_MANAGER)


def test_who_owes_work_may_begin_and_end_guests_all_the_same(quick_folder: Path) -> None:
    async def use(app: Application, ask: Ask) -> None:
        disk = call(app.service, "createVirtualDisk", {"targetRepoId": "a", "size": 1 << 20})
        of_disk = {"repositoryId": "a", "imageId": disk}
        app._work.charge(_MANAGER, 60_000)
        for verb in ("getImageInfo", "removeImage", "checkStorageRepository"):
            refused = await ask("POST", f"/v1/{verb}", of_disk)
            assert (refused.status_code, refused.json()["code"]) == (429, "TooManyRequests"), verb
        before_ms = owed_ms(app)
        for verb, more in (("prepareImage", {}), ("setUserData", {"userData": 1}), ("teardownImage", {})):
            answer = await ask("POST", f"/v1/{verb}", {**of_disk, **more})
            assert answer.status_code == 200, answer.text
            assert owed_ms(app) > before_ms  # it is counted as everything is
            before_ms = owed_ms(app)
        assert call(app.service, "getImageInfo", of_disk)["userData"] == 1

    over_tls(quick_folder, use)


def test_figures_are_work_too(quick_folder: Path) -> None:
    async def use(app: Application, ask: Ask) -> None:
        before_ms = owed_ms(app)
        assert (await ask("GET", "/metrics", {})).status_code == 200
        assert owed_ms(app) > before_ms
        app._work.charge(_MANAGER, 60_000)
        assert (await ask("GET", "/metrics", {})).status_code == 429

    over_tls(quick_folder, use)


def test_pages_that_need_no_token_are_counted_by_address(quick_folder: Path) -> None:
    async def use(app: Application, ask: Ask) -> None:
        app._pages._pages = Rates.of_requests(1, _StillClock())
        asked = ["/docs", "/openapi.json", "/docs", "/openapi.json"]
        assert [(await ask("GET", path, {})).status_code for path in asked] == [200, 200, 429, 429]
        assert (await ask("GET", "/healthz", {})).status_code == 200
        assert (await ask("GET", "http://d/docs", {})).status_code == 200  # as on the Unix socket

    over_tls(quick_folder, use)


def test_who_has_a_network_of_addresses_has_one_part_of_what_needs_no_token(quick_folder: Path) -> None:
    """Of IPv6 every host has 2^64 addresses."""

    async def use(app: Application, ask: Ask) -> None:
        app._pages._pages = Rates.of_requests(1, _StillClock())
        app._refusals = Rates.of_requests(1, _StillClock())

        async def status(path: str, address: str) -> int:
            transport = httpx.ASGITransport(app.asgi(), client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="https://d") as client:
                return (await client.get(path)).status_code

        for path, well in (("/docs", 200), ("/metrics", 401), ("/healthz", 200)):
            app._pages._probes = Rates.of_requests(1, _StillClock())
            addresses = [
                "2001:db8::1",
                "2001:db8::2",
                "2001:db8::3",
                "2001:db8:0:1::1",
                "192.0.2.1",
                "192.0.2.2",
            ]
            found = [await status(path, address) for address in addresses]
            assert found == [well, well, 429, well, well, well]

    over_tls(quick_folder, use)
