"""Waiting for a daemon's work, and listening to what happens there; both clients."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from diskyard import AsyncDiskyard, Diskyard, MiB, errors
from diskyard.daemon.tokens import Tokens
from diskyard.model.results import Task
from diskyard.testing.daemon_process import DaemonProcess

WAIT_S = 60.0
NOISE_MIB = 12


class Host:
    """A daemon with a repository ``a``, and a file to import there."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.noise = daemon.folder / "noise.raw"
        self.noise.write_bytes(os.urandom(NOISE_MIB << 20))
        with Diskyard(daemon.url) as yard:
            yard.create_storage_repository("localfs-1.0", daemon.place("a"))
            yard.connect_storage_repository("a", "localfs-1.0", daemon.place("a"))

    def token(self, scope: Any = "admin") -> str:
        _, text = Tokens(str(self.daemon.state_folder)).create(f"{scope}s", scope, None, None)
        return text


@pytest.fixture
def daemon(short_folder: Path) -> Iterator[DaemonProcess]:
    tables = {"transfer": {"folders": ["/"]}, "limits": {"event_streams": 1}}
    with DaemonProcess(short_folder, tables, forked=True) as running:
        yield running


@pytest.fixture
def host(daemon: DaemonProcess) -> Host:
    return Host(daemon)


def slow(rate_mib_per_s: int = 8) -> dict[str, Any]:
    return {"rate_limit": rate_mib_per_s * MiB}


def test_work_is_waited_for_with_its_progress(host: Host) -> None:
    seen: list[Task] = []
    with Diskyard(host.daemon.url) as yard:
        image = yard.import_image("a", str(host.noise), "raw", options=slow())
        status = yard.wait_for_image("a", image, timeout_s=WAIT_S, on_progress=seen.append)
        assert (status.status, status.task_id) == ("optimized", None)
        assert "running" in {task.state for task in seen}
        assert {task.image_id for task in seen} == {image}
        (task_id,) = yard.take_started()
        assert yard.wait_for_task(task_id).state == "done"
        assert yard.take_started() == []
        assert yard.wait_for_tasks()
        assert yard.unfinished_tasks() == []


def test_leaving_waits_for_what_was_started_and_an_exception_leaves_it_to_the_daemon(host: Host) -> None:
    with Diskyard(host.daemon.url) as yard:
        first = yard.import_image("a", str(host.noise), "raw", options=slow())
    assert host.daemon.call("getImageStatus", repositoryId="a", imageId=first)["status"] == "optimized"
    made = []

    def fail() -> None:
        with Diskyard(host.daemon.url) as yard:
            made.append(yard.import_image("a", str(host.noise), "raw", options=slow()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert host.daemon.wait_for_image("a", made[0]) == "optimized"


def test_what_does_not_end_in_time(host: Host) -> None:
    with Diskyard(host.daemon.url) as yard:
        image = yard.import_image("a", str(host.noise), "raw", options=slow(1))
        assert not yard.wait_for_tasks(timeout_s=0)
        assert not yard.wait_for_tasks(timeout_s=0.6)
        (task,) = yard.unfinished_tasks()
        with pytest.raises(TimeoutError, match="is still running"):
            yard.wait_for_task(task.task_id, timeout_s=0.3)
        with pytest.raises(TimeoutError, match="is still broken"):
            yard.wait_for_image("a", image, timeout_s=0.3)
        yard.stop_task(task.task_id)
        assert yard.wait_for_tasks(timeout_s=WAIT_S)
        assert yard.wait_for_task(task.task_id).state == "stopped"
        with pytest.raises(errors.ImageBroken):
            yard.wait_for_image("a", image)


def test_a_task_that_fails(host: Host) -> None:
    with Diskyard(host.daemon.url) as yard:
        yard.import_image("a", str(host.noise), "raw", options={"auto_fix": False})
        (fix,) = yard.check_storage_repository("a")
        host.noise.write_bytes(b"x" * MiB)
        task = yard.fix_storage_repository("a", fix)
        with pytest.raises(errors.DiskyardError) as caught:
            yard.wait_for_task(task.task_id, timeout_s=WAIT_S)
        error = yard.get_task(task.task_id).error
        assert error is not None
        assert caught.value.to_json() == error


def test_waiting_without_a_stream_of_events(host: Host) -> None:
    """There is one stream, and somebody else has it: the end is seen all the same."""
    with Diskyard(host.daemon.url) as other, Diskyard(host.daemon.url) as yard:
        held = other.events()
        repository = threading.Thread(target=lambda: next(held))
        repository.start()
        yard.disconnect_storage_repository("a")
        repository.join(WAIT_S)
        yard.connect_storage_repository("a", "localfs-1.0", host.daemon.place("a"))
        image = yard.import_image("a", str(host.noise), "raw", options=slow())
        assert yard.wait_for_tasks(timeout_s=WAIT_S)
        assert yard.wait_for_image("a", image).status == "optimized"
        held.close()


def test_work_of_another_process_is_waited_for(host: Host) -> None:
    """Its tasks are shown by the daemon, but no event tells of them."""
    with Diskyard(state_folder=str(host.daemon.state_folder)) as beside, Diskyard(host.daemon.url) as yard:
        beside.import_image("a", str(host.noise), "raw", options=slow())
        (task_id,) = beside.take_started()
        assert yard.wait_for_task(task_id, timeout_s=WAIT_S).state == "done"


def test_a_daemon_that_ends_while_it_is_waited_for(host: Host) -> None:
    with Diskyard(host.daemon.url) as yard:
        image = yard.import_image("a", str(host.noise), "raw", options=slow(1))
        (task,) = yard.unfinished_tasks()
        ended: list[Task] = []
        waits = threading.Thread(target=lambda: ended.append(yard.wait_for_task(task.task_id, WAIT_S)))
        waits.start()
        assert host.daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        host.daemon.start()
        waits.join(WAIT_S)
        # What ran when it was killed has stopped, and stays listed.
        assert [found.state for found in ended] == ["stopped"]
        assert yard.wait_for_tasks(timeout_s=WAIT_S)
        (fix,) = yard.check_storage_repository("a", {"types": ["mend"]})
        assert fix.image_id == image


def test_events_are_gone_on_with_after_the_daemon_was_away(host: Host) -> None:
    with Diskyard(host.daemon.url) as yard:
        events = yard.events(types=("repository",))
        found: list[Any] = []
        listens = threading.Thread(target=lambda: found.extend(islice(events, 4)))
        listens.start()
        while listens.is_alive():  # until the stream is open, nothing of this is told
            yard.disconnect_storage_repository("a")
            yard.connect_storage_repository("a", "localfs-1.0", host.daemon.place("a"))
            listens.join(0.2)
        events.close()  # there is one stream
        changes = [event.data["change"] for event in found]
        assert changes in (["disconnected", "connected"] * 2, ["connected", "disconnected"] * 2)
        assert {event.repository_id for event in found} == {"a"}
        # After the one named, those that came since; of a daemon that is another, that some are missed.
        again = yard.events(last_event_id=found[1].event_id, types=("repository",))
        assert [next(again), next(again)] == found[2:]
        again.close()
        host.daemon.stop()
        host.daemon.start()
        missed = yard.events(last_event_id=found[1].event_id)
        assert next(missed).kind == "reset"
        missed.close()


def test_events_that_are_refused(host: Host) -> None:
    for token, kind in ((host.token("read"), None), ("wrong", errors.Unauthorized)):
        with Diskyard(host.daemon.tls_url, token=token, ca_file=str(host.daemon.ca_file)) as yard:
            events = yard.events(types=["nonsense"])  # type: ignore[list-item]
            with pytest.raises(kind or errors.InvalidParameter):
                next(events)


def test_what_a_token_may_not_do(host: Host) -> None:
    with Diskyard(host.daemon.tls_url, token=host.token("read"), ca_file=str(host.daemon.ca_file)) as yard:
        assert list(yard.connected()) == ["a"]
        with pytest.raises(errors.Forbidden):
            yard.create_virtual_disk("a", MiB)
    with (
        Diskyard(host.daemon.tls_url, ca_file=str(host.daemon.ca_file)) as yard,
        pytest.raises(errors.Unauthorized),
    ):
        yard.connected()
    with (
        Diskyard(host.daemon.tls_url) as yard,
        pytest.raises(errors.InvalidParameter, match="cannot be trusted"),
    ):
        yard.connected()


@pytest.mark.parametrize("over", ["unix", "tls"])
def test_the_asynchronous_client(host: Host, over: str) -> None:
    async def work() -> None:
        is_unix = over == "unix"
        url, token = (host.daemon.url, None) if is_unix else (host.daemon.tls_url, host.token())
        ca_file = None if is_unix else str(host.daemon.ca_file)
        seen: list[Task] = []
        async with AsyncDiskyard(url, timeout_s=WAIT_S, token=token, ca_file=ca_file) as yard:
            options = slow()
            images = await asyncio.gather(
                *(yard.import_image("a", str(host.noise), "raw", options=options) for _ in range(3))
            )
            status = await yard.wait_for_image("a", images[0], timeout_s=WAIT_S, on_progress=seen.append)
            assert status.status == "optimized"
            assert await yard.wait_for_tasks(timeout_s=WAIT_S)
            page = await yard.list_images("a")
            assert {image.image_id for image in page.images} == set(images)
            assert {image.status for image in page.images} == {"optimized"}
            with pytest.raises(errors.ImageNotFound):
                await yard.get_image_info("a", "00000000-0000-4000-8000-000000000001")
            assert await yard.call("getTask", {"taskId": yard.take_started()[0]})
            last = await yard.import_image("a", str(host.noise), "raw", options=options)
        assert host.daemon.call("getImageStatus", repositoryId="a", imageId=last)["status"] == "optimized"

    asyncio.run(work())


def test_asynchronous_events(host: Host) -> None:
    async def work() -> None:
        async with AsyncDiskyard(host.daemon.url) as yard:
            events = yard.events(types=("image",), repository_id="a")
            found = asyncio.ensure_future(anext(events))
            made = set()
            while not found.done():
                made.add(await yard.create_virtual_disk("a", MiB))
                await asyncio.wait((found,), timeout=0.2)
            event = found.result()
            assert event.data["change"] == "created"
            assert event.data["imageId"] in made
            await events.aclose()

    asyncio.run(work())
