"""What all callers share, and that none of them takes all of it."""

from __future__ import annotations

from contextlib import ExitStack

from diskyard.caller import Share
from diskyard.errors import TooManyRequests
from diskyard.http.limits import Shared
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
