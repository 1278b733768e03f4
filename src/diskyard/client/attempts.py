"""When a call to a daemon is sent again, and the error when it is not (decision 0013)."""

from __future__ import annotations

import time

import httpx

from diskyard import errors
from diskyard.client.wire import Answer, Call

_CONNECT_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.1
_LOST_LIMIT = 4
_RESTART_MOST_S = 20.0
_BUSY = (429, 503)


class Attempts:
    """The attempts of one call.

    :param url: of the daemon, for messages.
    :param timeout_s: how long all attempts may take together.
    :param has_answered: whether the daemon has answered before, so that it may just be restarting.
    """

    def __init__(self, call: Call, url: str, timeout_s: float, *, has_answered: bool) -> None:
        self._call = call
        self._url = url
        self._timeout_s = timeout_s
        self._began_s = time.monotonic()
        self._until_s = self._began_s + timeout_s
        self._has_answered = has_answered
        self._failures = 0

    def timeout(self) -> httpx.Timeout:
        """How long the next attempt may take."""
        left_s = max(0.001, self._until_s - time.monotonic())
        return httpx.Timeout(left_s, connect=min(_CONNECT_TIMEOUT_S, left_s))

    def after_answer(self, answer: Answer) -> float | None:
        """None if the answer is final; otherwise how long to wait before the next attempt."""
        if answer.status not in _BUSY:
            return None
        told = answer.headers.get("Retry-After", "")
        if not (told.isascii() and told.isdigit() and len(told) < 6):
            return None
        # A 503 from a daemon is about storage that it has waited for long enough. A 503 from a proxy
        # does not say whether the daemon got the call.
        if answer.status != 429 and (answer.is_ours() or not self._call.repeatable):
            return None
        pause_s = max(float(told), self._pause_s())
        if time.monotonic() + pause_s > self._until_s:
            return None
        self._failures += 1
        return pause_s

    def after_failure(self, failure: httpx.HTTPError) -> float:
        """How long to wait before the next attempt.

        :raises diskyard.errors.DiskyardError: there is to be no other attempt.
        """
        is_unsent = isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
        is_repeatable = is_unsent or self._call.repeatable
        pause_s = self._pause_s()
        then_s = time.monotonic() + pause_s
        is_patient = is_unsent and self._has_answered and then_s < self._began_s + _RESTART_MOST_S
        is_due = is_repeatable and then_s < self._until_s and (is_patient or self._failures < _LOST_LIMIT)
        if not is_due or _is_refused_tls(failure):
            raise self._error(failure, is_unsent=is_unsent) from failure
        self._failures += 1
        return pause_s

    def _pause_s(self) -> float:
        return _FIRST_PAUSE_S * float(2 ** min(self._failures, 4))

    def _error(self, failure: httpx.HTTPError, *, is_unsent: bool) -> errors.DiskyardError:
        if _is_refused_tls(failure):
            return errors.InvalidParameter(
                f"The daemon at {self._url} cannot be trusted: {failure}.",
                advice="Check the URL, and give the file of the authority that signed its certificate "
                "(ca_file, $DISKYARD_CA_FILE).",
                url=self._url,
            )
        if is_unsent:
            return errors.RepositoryUnavailable(
                f"No daemon answers at {self._url}: {failure_text(failure)}.",
                advice="Start it (diskyard serve) or check the URL, then try again. The call was not sent.",
                url=self._url,
            )
        timed_out = isinstance(failure, httpx.TimeoutException)
        words = f"did not answer within {self._timeout_s:g} s" if timed_out else "ended the connection early"
        looks, kind = self._call.only_looks, errors.RepositoryUnavailable
        return (kind if looks else errors.unknown_outcome(kind))(
            f"The daemon at {self._url} {words}: {self._call.verb} got no answer.",
            advice="Try again."
            if looks
            else "The call may have taken effect, or may still take effect: check before you repeat it.",
            url=self._url,
            requestId=self._call.request_id,
        )


def failure_text(failure: BaseException) -> str:
    """The message of a failure, or else the name of its class."""
    return str(failure) or type(failure).__name__


def _is_refused_tls(failure: BaseException) -> bool:
    """Whether nothing was sent because of the certificate, or of something else in TLS."""
    import ssl

    cause: BaseException | None = failure if isinstance(failure, httpx.ConnectError) else None
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
