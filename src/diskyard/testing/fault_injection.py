"""A host whose storage calls fail: one of them, or all from one on.

A storage call is anything that passes the host's door and touches storage, including reads: the methods of
:class:`~diskyard.host.Files`, programs that are run, QMP commands, and requests to an NBD server. A run
without a fault shows which calls there are; then each of them can be made to fail.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ExecuteError

from diskyard import errors
from diskyard.host import Clock, Commands, Files, Finished, Host, HostIdentity, Limits
from diskyard.host.identity import new_nonce

R = TypeVar("R")

ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EINTR)
"""What calls that change something fail with."""

ERRNOS_OF_READS = (errno.EIO, errno.EACCES, errno.EINTR)
"""What calls that only look fail with."""

_READS = frozenset(
    (
        "read", "read_at", "read_beginning", "open_to_read", "list", "look", "look_at", "fingerprint",
        "fingerprint_of", "identities_of", "ownership_of", "exists", "is_folder", "size_bytes_of", "resolve",
        "look_open", "type_of", "device_behind", "open_folder", "is_own_folder", "free_space",
        "open_for_writing", "try_lock_byte", "byte_is_locked", "locked_bytes",
        "lock_folder", "try_lock_folder", "read_open", "names", "is_written_by_qemu",
        "name_is_written_by_qemu", "reads_past_cache", "longest_file_bytes", "is_read_only", "may_write",
        "file_system", "read_into", "read_each", "read_cached", "will_need", "next_data", "physical_extents",
        "qmp connect", "nbd connect", "nbd read", "nbd block status", "qemu-img map",
    )
)  # fmt: skip
_ANSWER_A_DESCRIPTOR = frozenset(
    (
        "create", "open_for_writing", "open_to_read", "open_to_append", "open_folder", "lock_folder",
        "try_lock_folder",
    )
)  # fmt: skip
_OF_FOLDERS = frozenset(
    (
        "list", "keep_room", "drop_room", "names", "look_at", "sync_folder", "free_space", "lock_folder",
        "try_lock_folder",
    )
)  # fmt: skip
_NEED_ROOM = frozenset(
    (
        "create", "write", "truncate", "preallocate", "keep_room", "clone", "sync", "begin_write_out",
        "end_write_out", "make_folder", "link", "symlink", "rename", "rename_to_new",
    )
)  # fmt: skip
_USE_NAMES = frozenset(
    (
        "read", "read_at", "read_beginning", "open_to_read", "list", "look", "look_at", "fingerprint",
        "identities_of", "ownership_of", "exists", "is_folder", "create", "open_for_writing", "sync_folder",
        "make_folder", "give_folder", "set_access", "link", "symlink", "rename", "rename_to_new", "unlink",
        "remove_folder", "lock_folder", "try_lock_folder", "names", "keep_room", "drop_room",
        "name_is_written_by_qemu",
    )
)  # fmt: skip


PRIVATE = "diskyard-"
"""What the names of folders for sockets begin with."""


@dataclass(frozen=True, slots=True)
class Call:
    """One storage call of a run.

    :param where: the kind of thing that it is about; mostly the name of its directory.
    """

    name: str
    where: str

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.name in _READS or self.name.startswith(("qmp query-", "qmp x-debug-query-"))

    @property
    def is_private(self) -> bool:
        """Whether it is about this host's directory for sockets, and not about storage."""
        return self.name == "make_private_folder" or self.where.startswith(PRIVATE)

    def may_fail_afterwards(self) -> bool:
        """Whether it may have taken effect although it failed."""
        return not self.reads and not self.is_private

    def errnos(self) -> tuple[int, ...]:
        """The errors with which it may fail."""
        return ERRNOS_OF_READS if self.reads else ERRNOS


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    :param at: the index of the call. A run may make one call more or less than the last one (it polls until
        a job ends): the fault is at the first call from there on to which it can happen.
    :param afterwards: the call is made, and returns the error all the same.
    :param lasting: later calls that failing storage would fail too fail as well, until the end.
    """

    at: int
    number: int
    afterwards: bool = False
    lasting: bool = False

    def __str__(self) -> str:
        """Its name in tests."""
        words = [f"call {self.at}", errno.errorcode[self.number]]
        words += ["afterwards"] * self.afterwards + ["lasting"] * self.lasting
        return " ".join(words)

    def can_begin_at(self, index: int, call: Call) -> bool:
        """Whether a call can be the first that fails."""
        if index < self.at or self.number not in call.errnos():
            return False
        return call.may_fail_afterwards() or not self.afterwards

    def goes_on_at(self, call: Call) -> bool:
        """Whether a call fails after the first one did."""
        if not self.lasting or call.is_private:
            return False
        if self.number in (errno.ENOSPC, errno.EDQUOT):
            return call.name in _NEED_ROOM or call.name.startswith(("nbd write", "nbd zero", "nbd flush"))
        if self.number == errno.EACCES:
            return call.name in _USE_NAMES
        return self.number == errno.EIO


@dataclass(slots=True)
class Injector:
    """The storage calls of one operation, from all its threads, and what goes wrong with them.

    :ivar calls: the calls since :meth:`begin`, in order.
    :ivar by_caller: those of them that the thread which called :meth:`begin` made itself.
    :ivar failed: how many of them were made to fail.
    :ivar hangs: set once a call does not return.
    """

    calls: list[Call] = field(default_factory=list)
    by_caller: list[Call] = field(default_factory=list)
    failed: int = 0
    hangs: threading.Event = field(default_factory=threading.Event)
    _roots: tuple[str, ...] = ()
    _hang_at: int | None = None
    _hung_root: str | None = None
    _released: threading.Event = field(default_factory=threading.Event)
    _fault: Fault | None = None
    _caller: threading.Thread | None = None
    _active: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, fault: Fault | None) -> None:
        """Count and fail calls from here on."""
        self.calls, self.by_caller, self._caller = [], [], threading.current_thread()
        self.failed, self._fault, self._active = 0, fault, True

    def end(self) -> None:
        """End the fault: the storage works again."""
        self._active = False

    def hang(self, at: int, roots: Sequence[str]) -> None:
        """Let a call, and all later calls to the same storage, not return until :meth:`release`.

        :param roots: the directories of the storages.
        """
        self.begin(None)
        self._hang_at, self._roots = at, tuple(f"{root}/" for root in roots)

    @property
    def hung_root(self) -> str | None:
        """The directory of the storage that hangs; None if the hanging call is not in any of them."""
        return None if self._hung_root is None else self._hung_root.rstrip("/")

    def release(self) -> None:
        """Let the storage answer again."""
        self._active = False
        self._released.set()

    def _wait_if_hung(self, path: str) -> None:
        with self._lock:
            if not self._active or self._hang_at is None:
                return
            here = len(self.calls) == self._hang_at + 1 and not self.hangs.is_set()
            if here:
                self._hung_root = next((root for root in self._roots if f"{path}/".startswith(root)), None)
            elif not (self.hangs.is_set() and self._hung_root and f"{path}/".startswith(self._hung_root)):
                return
        self.hangs.set()
        self._released.wait()

    @contextmanager
    def around(
        self, name: str, where: str, raised: Callable[[int, bool], BaseException], path: str = ""
    ) -> Iterator[None]:
        """A context in which a call is made.

        :param raised: the exception for an errno, before the call is made or after it.
        """
        fault = self._fault_for(Call(name, where))
        self._wait_if_hung(path)
        if fault is not None and not fault.afterwards:
            raise raised(fault.number, False)
        yield
        if fault is not None:
            raise raised(fault.number, True)

    def _fault_for(self, call: Call) -> Fault | None:
        with self._lock:
            if not self._active:
                return None
            index = len(self.calls)
            self.calls.append(call)
            if threading.current_thread() is self._caller:
                self.by_caller.append(call)
            fault = self._fault
            if fault is None:
                return None
            if not (fault.goes_on_at(call) if self.failed else fault.can_begin_at(index, call)):
                return None
            self.failed += 1
            return fault


def path_of(words: Sequence[object]) -> str:
    """The path that a call is about. For a descriptor, the path that it is open on."""
    word = words[0] if words else ""
    if isinstance(word, list):  # a list of ranges, each with its descriptor
        word = word[0][0] if word else ""
    if isinstance(word, int):
        try:
            word = os.readlink(f"/proc/self/fd/{word}")
        except OSError:
            return ""
    return word if isinstance(word, str) else ""


def _kind_of(name: str, path: str) -> str:
    """The directory that a path is in, or that it is."""
    return os.path.basename(path if name in _OF_FOLDERS else os.path.dirname(path))


class FaultyFiles(Files):
    """Files whose calls fail as the injector says."""

    def __init__(self, host: HostIdentity, injector: Injector) -> None:
        super().__init__(host)
        self._injector = injector

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """See :meth:`Files.passing`."""

        def faulty() -> R:
            answers: list[R] = []
            path = path_of(words)
            try:
                with self._injector.around(name, _kind_of(name, path), raised, path):
                    answers.append(do())
            except OSError:
                # A caller that gets an error has no descriptor, whatever was done.
                for answer in answers if name in _ANSWER_A_DESCRIPTOR else ():
                    assert isinstance(answer, int)
                    os.close(answer)
                raise
            return answers[0]

        def raised(number: int, _afterwards: bool) -> OSError:
            path = words[0] if words and isinstance(words[0], str) else None
            return OSError(number, os.strerror(number), path)

        return super().passing(name, words, faulty)


class FaultyCommands(Commands):
    """Programs, and requests to running ones, that fail as the injector says."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def run(
        self,
        words: Sequence[str],
        *,
        timeout_s: float,
        limits: Limits | None = None,
        inherit_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """See :meth:`Commands.run`. A fault is printed on stderr, as by a program."""
        failed = _ProgramFailed
        try:
            with self._injector.around(f"run {words[0]} {words[1]}", "", failed):
                return super().run(
                    words,
                    timeout_s=timeout_s,
                    limits=limits,
                    inherit_fds=inherit_fds,
                    environment=environment,
                )
        except _ProgramFailed as error:
            return Finished(1, b"", f"{words[0]}: {os.strerror(error.number)}")

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.telling`."""
        with super().telling(what), self._injector.around(what, "", _told(what)):
            yield

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """See :meth:`Commands.asking`."""
        with super().asking(what), self._injector.around(what, "", _told(what)):
            yield


class _ProgramFailed(Exception):
    def __init__(self, number: int, _afterwards: bool) -> None:
        self.number = number


def _told(what: str) -> Callable[[int, bool], BaseException]:
    """What is raised instead of an answer: QEMU's message, or, after it has acted, its silence."""

    def raised(number: int, afterwards: bool) -> BaseException:
        words = os.strerror(number)
        if what.startswith("nbd"):
            if number in (errno.ENOSPC, errno.EDQUOT):
                return errors.NoSpace(f"The storage is full while asking for {what}.")
            return errors.StorageError(f"QEMU's NBD server failed while asking for {what}: {words}.")
        if what.startswith("qemu-img"):
            return errors.StorageError(f"QEMU failed while asking for {what}: {words}.")
        if afterwards:
            return ConnectionResetError(number, words)
        message = Message({"error": {"class": "GenericError", "desc": f"Could not do it: {words}"}})
        return ExecuteError(ErrorResponse(message), Message({"execute": what}), message)

    return raised


def faulty_host(injector: Injector, host_id: str, *, ended: bool = False) -> Host:
    """This machine under another name, whose storage calls fail as the injector says.

    :param ended: every other host of this machine sees that its boot has ended, so that what it leaves
        behind certainly belongs to nobody.
    """
    real = Host.real().identity
    identity = HostIdentity(host_id, real.machine_id, new_nonce() if ended else real.boot_id)
    return Host(identity, FaultyFiles(identity, injector), FaultyCommands(injector), Clock())


# -- what must not be left behind -------------------------------------------------------


def open_descriptors() -> dict[str, str]:
    """The open files of this process, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor with which this directory is listed
    return found


def children() -> set[int]:
    """The living children of this process."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended since
        if int(fields[1]) == os.getpid():
            found.add(int(name))
    return found
