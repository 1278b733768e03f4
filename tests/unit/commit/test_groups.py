"""Changes that several threads want at the same time: one entry, and an answer for each."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from diskyard import errors
from diskyard.host.calls import TIMEOUT_VARIABLE, calls_of_this_thread, noted
from diskyard.host.publishing import UncertainError
from diskyard.host.supervise import Supervisor
from diskyard.log.codec import decode
from diskyard.log.log import Author, Log
from diskyard.log.store import LogKind
from diskyard.model.capabilities import Capabilities
from diskyard.model.looked import NOT_LOOKED, Looked
from diskyard.model.records import Image, ImageSource, entry_id, split_entry_id
from diskyard.model.transaction import Draft, Entry, Frees
from diskyard.planner import attach, change, copy
from diskyard.planner.building import NewVolume, WorkIds
from diskyard.planner.optimize import plan_optimize, seal_optimize
from diskyard.repository import commit as committing
from diskyard.repository.commit import Committed, commit
from diskyard.testing.faults import Crash, WatchedStorage
from diskyard.testing.together import Together, at_once
from tests.unit.log.shelf import Shelf, once, write_many
from tests.unit.records import ENTRY, HOST, NOW, building, disk, image, uid, volume

LONG_S = 60.0
_STAYS_S = 0.5  # ten looks at storage that does not answer
Plan = Callable[[Draft], object]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def named(log: Log, name: str, plan: Plan, missing: Looked = NOT_LOOKED) -> Callable[[], object]:
    return lambda: commit(log, plan, Author(f"verb of {name}", name, f"digest of {name}"), missing).result


def put(name: str) -> Plan:
    """Put a volume record, and answer the name."""

    def plan(draft: Draft) -> str:
        draft.put_volume(volume(uid(name)))
        return name

    return plan


def user_data(name: str, text: str, if_revision: str | None = None) -> Plan:
    return lambda draft: change.set_user_data(draft, uid(name), text, if_revision)


def remove(name: str) -> Plan:
    return lambda draft: change.remove(draft, uid(name))


def begin(asked: copy.PendingImage) -> Plan:
    return lambda draft: copy.begin(draft, asked, Capabilities())


def putting(log: Log, *names: str) -> list[Callable[[], object]]:
    return [named(log, name, put(name)) for name in names]


def prepared(log: Log, *records: object) -> None:
    """Put images and volumes in an entry of their own."""

    def plan(draft: Draft) -> None:
        for record in records:
            draft.put_image(record) if isinstance(record, Image) else draft.put_volume(record)  # type: ignore[arg-type]

    commit(log, plan, Author("prepare", ""))


def entry_of(shelf: Shelf, number: int) -> Entry:
    return decode(shelf.storage().get("entry", number)[0] or b"", Entry)[0]


def volumes(shelf: Shelf) -> set[str]:
    """What a reader that comes now finds."""
    return set(shelf.log().refresh().volumes)


def ids(*names: str) -> set[str]:
    return {uid(name) for name in names}


# -- one entry ---------------------------------------------------------------------------------


def test_who_waits_together_shares_an_entry(shelf: Shelf) -> None:
    log = shelf.log()
    assert at_once(log, *putting(log, "a", "b", "c")) == ["a", "b", "c"]
    assert shelf.numbers("entry") == [0, 1]
    entry = entry_of(shelf, 1)
    assert [(part.verb, part.actor, part.request_digest) for part in entry.parts()] == [
        (f"verb of {name}", name, f"digest of {name}") for name in "abc"
    ]
    assert [[record.id for record in part.changes.put_volumes] for part in entry.parts()] == [
        [uid(name)] for name in "abc"
    ]
    for reader in (log, shelf.log()):
        assert set(reader.refresh().volumes) == ids("a", "b", "c")
        assert reader.damage is None


def test_one_alone_is_an_entry_of_one(shelf: Shelf) -> None:
    log = shelf.log()
    assert named(log, "a", put("a"))() == "a"
    assert entry_of(shelf, 1).also == ()
    assert b'"also"' not in (shelf.storage().get("entry", 1)[0] or b"")


def test_each_is_planned_on_those_before_it(shelf: Shelf) -> None:
    log = shelf.log()
    seen: list[str] = []

    def count(name: str, draft: Draft) -> int:
        draft.put_volume(volume(uid(name)))
        seen.append(draft.entry)
        return len(draft.state.volumes)

    answers = at_once(log, *(named(log, name, partial(count, name)) for name in "abc"))
    assert answers == [1, 2, 3]
    assert len(set(seen)) == 1  # one entry


def refuse(draft: Draft) -> None:
    raise errors.ImageNotFound("not here")


def defect(draft: Draft) -> None:
    draft.put_image(image(uid("i"), uid("nowhere")))


def nothing(draft: Draft) -> str:
    return "nothing to do"


def test_what_a_plan_raises_is_its_callers_alone(shelf: Shelf) -> None:
    log = shelf.log()
    plans = {"first": refuse, "a": put("a"), "refused": refuse, "defect": defect, "b": put("b")}
    answers = at_once(log, *(named(log, name, plan) for name, plan in plans.items()))
    assert [type(answer) for answer in answers] == [
        errors.ImageNotFound,
        str,
        errors.ImageNotFound,
        errors.InternalError,
        str,
    ]
    assert volumes(shelf) == ids("a", "b")


def test_who_has_nothing_to_change_is_answered_and_is_in_no_entry(shelf: Shelf) -> None:
    log = shelf.log()
    answers = at_once(log, *(named(log, *each) for each in (("n", nothing), ("a", put("a")), ("m", nothing))))
    assert answers == ["nothing to do", "a", "nothing to do"]
    assert [part.actor for part in entry_of(shelf, 1).parts()] == ["a"]
    assert shelf.numbers("entry") == [0, 1]


def test_an_entry_of_several_has_its_limit(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "_RECORDS_MOST", 2)
    log = shelf.log()
    at_once(log, *putting(log, *"abcde"))
    assert [len(entry_of(shelf, number).parts()) for number in (1, 2, 3)] == [2, 2, 1]


def test_nothing_comes_after_the_last_entry(shelf: Shelf) -> None:
    log = shelf.log()
    acts = [named(log, name, plan) for name, plan in (("a", put("a")), ("c", Draft.close), ("b", put("b")))]
    first, closing, late = at_once(log, *acts)
    assert (first, closing) == ("a", None)
    assert isinstance(late, errors.NotARepository)
    assert shelf.log().refresh().closed
    assert volumes(shelf) == ids("a")


# -- one change of a record in an entry -----------------------------------------------------------


def test_two_changes_of_one_record_are_two_entries(shelf: Shelf) -> None:
    log = shelf.log()
    prepared(log, disk(uid("d"), uid("v")), volume(uid("v")))
    writes = [named(log, text, user_data("d", text)) for text in ("one", "two")]
    assert at_once(log, *writes, *putting(log, "a")) == [None, None, "a"]
    assert [part.actor for part in entry_of(shelf, 2).parts()] == ["one", "a"]
    found = log.refresh().images[uid("d")]
    assert (found.user_data, found.revision) == ("two", entry_id(3, log.refresh().nonce))


def test_of_two_changes_of_one_revision_one_wins(shelf: Shelf) -> None:
    log = shelf.log()
    prepared(log, disk(uid("d"), uid("v"), revision=ENTRY), volume(uid("v")))
    writes = [named(log, text, user_data("d", text, ENTRY)) for text in ("one", "two", "three")]
    answers = at_once(log, *writes)
    assert answers[0] is None
    assert all(isinstance(answer, errors.RevisionMismatch) for answer in answers[1:])
    assert log.refresh().images[uid("d")].user_data == "one"
    assert log.refresh().version == 2


def test_what_one_removes_is_not_there_for_the_next(shelf: Shelf) -> None:
    log = shelf.log()
    prepared(log, disk(uid("d"), uid("v")), volume(uid("v")))
    acts = [named(log, "r", remove("d")), named(log, "w", user_data("d", "late"))]
    removed, written = at_once(log, *acts)
    assert isinstance(removed, Image)
    assert isinstance(written, errors.ImageNotFound)
    assert log.refresh().volumes[uid("v")].state == "doomed"


def pending(image_id: str, volume_name: str, digest: str) -> copy.PendingImage:
    return copy.PendingImage(
        image_id=image_id,
        ids=WorkIds(uid(volume_name), "w"),
        kind="virtual_disk",
        size_bytes=4096,
        source=ImageSource(marker="m", image_id=uid("source")),
        base_image_id=None,
        strategy="space",
        user_data=None,
        request_digest=digest,
        now=NOW,
        captured_at=NOW,
    )


def test_one_new_image_id_asked_for_twice(shelf: Shelf) -> None:
    """The same request is made once and answered twice; another request is refused."""
    log = shelf.log()
    asked = [pending(uid("new"), name, digest) for name, digest in (("v", "x"), ("w", "x"), ("u", "y"))]
    acts = [named(log, each.request_digest, begin(each)) for each in asked]
    first, again, other = at_once(log, *acts)
    assert (first, again) == (True, False)
    assert isinstance(other, errors.ImageIdInUse)
    assert log.refresh().version == 1
    assert volumes(shelf) == ids("v")


def test_changes_that_do_not_fit_into_one_entry_are_made_one_by_one(shelf: Shelf) -> None:
    """An attachment's graph must be its image's chain in that very entry, which the other changes."""
    log = shelf.log()
    slow = disk(uid("d"), uid("v"), strategy="performance")
    prepared(log, slow, volume(uid("v")), building(uid("n"), uid("d")))
    capabilities = Capabilities(preallocation=True)
    found = log.refresh()
    built, looked = found.volumes[uid("n")], Looked(found.volumes, ())
    plan = plan_optimize(found, uid("d"), capabilities)
    assert plan is not None

    def prepare(draft: Draft) -> object:
        return attach.attach(
            draft,
            uid("d"),
            attachment_id=uid("a"),
            host=HOST,
            owner="vm",
            read_only=True,
            now=NOW,
        )

    def optimize(draft: Draft) -> None:
        seal_optimize(draft, plan, NewVolume(built))

    acts = [named(log, "prepare", prepare, looked), named(log, "optimize", optimize, looked)]
    acts += putting(log, "x")
    attached, optimized, written = at_once(log, *acts)
    assert getattr(attached, "volume_ids", None) == (uid("v"),)
    assert (optimized, written) == (None, "x")
    state = shelf.log().refresh()
    assert state.version == 4
    assert state.images[uid("d")].volume_id == uid("n")
    assert state.volumes[uid("v")].state == "ready"  # its reader has it open


# -- the state after it ---------------------------------------------------------------------------


def test_all_of_an_entry_are_given_the_states_around_it(shelf: Shelf) -> None:
    log = shelf.log()
    before = log.refresh()
    found = at_once(log, *(partial(commit, log, put(name), Author(name, "")) for name in "ab"))
    after = shelf.log().refresh()
    assert set(after.volumes) == ids("a", "b")
    assert found == [Committed(name, before, after) for name in "ab"]


def test_where_nothing_changes_the_state_is_the_newest(shelf: Shelf) -> None:
    log = shelf.log()
    log.refresh()
    commit(shelf.log(), put("other"), Author("other", ""))
    done = commit(log, lambda draft: "nothing", Author("none", ""))
    assert done.before is done.state
    assert done == Committed("nothing", done.state, shelf.log().refresh())


def test_the_states_around_an_entry_that_lost_its_number_are_those_of_the_next(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def come_first() -> None:
        commit(shelf.log(), put("other"), Author("other", ""))

    watched.before = once("put", come_first, watched)
    done = commit(log, put("a"), Author("a", ""))
    assert (set(done.before.volumes), set(done.state.volumes)) == (ids("other"), ids("other", "a"))
    assert done.state == shelf.log().refresh()


def test_an_entry_that_others_followed_gives_the_state_that_it_leads_to(shelf: Shelf) -> None:
    write_many(shelf.log(), 5)
    log, watched = shelf.open()
    log.refresh()
    watched.after = once("put", lambda: write_many(shelf.log(), 500), watched)
    done = commit(log, put("first"), Author("first", ""))
    assert done.state.version == 6
    assert uid("first") in done.state.volumes
    assert log.refresh().version == 506


# -- losing, and failing -----------------------------------------------------------------------------


def test_all_plan_again_where_another_had_the_number(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def come_first() -> None:
        commit(shelf.log(), put("other"), Author("other", ""))

    watched.before = once("put", come_first, watched)
    entries: list[str] = []

    def plan(name: str, draft: Draft) -> object:
        entries.append(draft.entry)
        return put(name)(draft)

    def refused_once(draft: Draft) -> str:
        if uid("other") not in draft.state.volumes:
            raise errors.ImageNotFound("the other has not come yet")
        return "found"

    plans: dict[str, Plan] = {"a": partial(plan, "a"), "r": refused_once, "b": partial(plan, "b")}
    acts = [named(log, name, each) for name, each in plans.items()]
    assert at_once(log, *acts) == ["a", "found", "b"]
    assert [split_entry_id(entry)[0] for entry in entries] == [1, 1, 2, 2]
    assert len(set(entries)) == 2  # both of one try are of one entry, and each try has its own
    assert volumes(shelf) == ids("a", "b", "other")
    assert [part.actor for part in entry_of(shelf, 2).parts()] == ["a", "b"]


class FullStorage(WatchedStorage):
    """There is room only in the reserve."""

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        if not frees:
            raise OSError(errno.ENOSPC, "full")
        return super().put(kind, number, data, frees=frees)


def test_on_a_full_storage_what_leads_to_less_gets_through(shelf: Shelf) -> None:
    log = shelf.log()
    prepared(log, disk(uid("d"), uid("v")), volume(uid("v")), disk(uid("e"), uid("w")), volume(uid("w")))
    full = Log(FullStorage(shelf.storage()), shelf.host)
    removes = [named(full, name, remove(name)) for name in "de"]
    answers = at_once(full, *putting(full, "a"), *removes, *putting(full, "b"))
    assert [type(answer) for answer in answers] == [errors.NoSpace, Image, Image, errors.NoSpace]
    state = shelf.log().refresh()
    assert set(state.volumes) == ids("v", "w")
    assert {volume.state for volume in state.volumes.values()} == {"doomed"}


def test_the_reserve_is_for_entries_of_which_all_lead_to_less(shelf: Shelf) -> None:
    log = shelf.log()
    prepared(log, disk(uid("d"), uid("v")), volume(uid("v")), disk(uid("e"), uid("w")), volume(uid("w")))
    full = Log(FullStorage(shelf.storage()), shelf.host)
    removes = [named(full, name, remove(name)) for name in "de"]
    at_once(full, *removes)
    assert [part.actor for part in entry_of(shelf, 2).parts()] == ["d", "e"]


@pytest.mark.parametrize("was_made", [False, True])
def test_an_unknown_outcome_is_unknown_to_all_in_the_entry_and_to_no_one_else(
    shelf: Shelf, was_made: bool
) -> None:
    log, watched = shelf.open()
    prepared(log, disk(uid("d"), uid("v")), volume(uid("v")))

    def fail() -> None:
        raise UncertainError(errno.EIO, "Input/output error")

    hook = once("put", fail, watched)
    if was_made:
        watched.after = hook
    else:
        watched.before = hook
    acts = [
        *putting(log, "a"),
        named(log, "r", remove("d")),
        named(log, "w", user_data("d", "late")),
        *putting(log, "b"),
    ]
    first, removed, written, last = at_once(log, *acts)
    for answer in (first, removed, last):
        assert isinstance(answer, errors.StorageError)
        assert answer.details["outcome"] == "unknown"
    assert len({id(answer) for answer in (first, removed, last)}) == 3
    # It changed nothing that is in the entry, and is told what has become of it.
    assert isinstance(written, errors.ImageNotFound) if was_made else written is None
    assert volumes(shelf) == (ids("a", "b", "v") if was_made else ids("v"))


def test_what_cannot_be_looked_at_after_publishing_is_unknown(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def fail(method: str, words: Sequence[object]) -> None:
        if method == "get" and "put" in watched.calls:
            raise OSError(errno.ESTALE, "Stale file handle")

    watched.before = fail
    watched.calls.clear()
    for answer in at_once(log, *putting(log, "a", "b")):
        assert isinstance(answer, errors.StorageError)
        assert answer.details["outcome"] == "unknown"
    assert volumes(shelf) == ids("a", "b")


def test_storage_that_cannot_be_read_is_told_to_all(shelf: Shelf) -> None:
    log, watched = shelf.open()
    log.refresh()

    def fail(method: str, words: Sequence[object]) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def act(draft: Draft) -> None:
        watched.before = fail

    together = Together(log, [named(log, "breaks", act), *putting(log, "a", "b")])
    together.start()
    answers = together.join()
    assert answers[0] is None
    assert [type(answer) for answer in answers[1:]] == [errors.RepositoryUnavailable] * 2


# -- a thread that is ended while it works for others -----------------------------------------------


def test_killed_while_it_plans(shelf: Shelf) -> None:
    log = shelf.log()

    def kill(draft: Draft) -> None:
        raise Crash

    answers = at_once(log, named(log, "k", kill), *putting(log, "a", "b"))
    assert isinstance(answers[0], Crash)
    assert answers[1:] == ["a", "b"]
    assert volumes(shelf) == ids("a", "b")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_publishes(shelf: Shelf, moment: str) -> None:
    log, watched = shelf.open()
    log.refresh()

    def kill() -> None:
        raise Crash

    setattr(watched, moment, once("put", kill, watched))
    first, second, refused = at_once(log, *putting(log, "a", "b"), named(log, "r", refuse))
    assert isinstance(first, Crash)
    assert isinstance(second, errors.StorageError)
    assert second.details["outcome"] == "unknown"
    assert isinstance(refused, errors.ImageNotFound)
    assert volumes(shelf) == (ids("a", "b") if moment == "after" else set())
    assert at_once(log, *putting(log, "c", "d")) == ["c", "d"]


# -- storage that does not answer ----------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Storage answers once this is set; until then it counts as silent soon."""
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
    found = threading.Event()
    yield found
    found.set()


def hang_in_put(watched: WatchedStorage, answers: threading.Event) -> threading.Event:
    hangs = threading.Event()

    def hang() -> None:
        with noted("sync", "/somewhere"), noted("link", "/somewhere"):
            hangs.set()
            answers.wait(LONG_S)

    watched.before = once("put", hang, watched)
    return hangs


def test_who_is_worked_for_stays_and_who_waits_leaves(shelf: Shelf, answers: threading.Event) -> None:
    log, watched = shelf.open()
    log.refresh()
    hangs = hang_in_put(watched, answers)
    supervisor, ended = Supervisor(0.2), threading.Event()

    def follow() -> object:
        try:
            return named(log, "b", put("b"))()
        finally:
            ended.set()

    together = Together(log, [*putting(log, "a"), lambda: supervisor.run(follow, may_be_done=True)])
    together.start()
    assert hangs.wait(LONG_S)
    # Who comes now is told soon, and nothing comes of it later.
    with pytest.raises(errors.RepositoryUnavailable, match="link of /somewhere") as late:
        named(log, "late", put("late"))()
    assert "outcome" not in late.value.details
    # Whose change may still be made is left by its caller, and stays until that is known.
    together._threads[1].join(LONG_S)
    left = together.answers[1]
    assert isinstance(left, errors.RepositoryUnavailable)
    assert left.details["outcome"] == "unknown"
    assert not ended.wait(_STAYS_S)
    answers.set()
    assert together.join()[0] == "a"
    assert ended.wait(LONG_S)
    assert named(log, "c", put("c"))() == "c"
    assert volumes(shelf) == ids("a", "b", "c")
    supervisor.close()


def test_who_only_reads_leaves_even_if_it_is_read_for(shelf: Shelf, answers: threading.Event) -> None:
    log, watched = shelf.open()
    log.refresh()
    hangs = threading.Event()

    def hang() -> None:
        with noted("read", "/somewhere"):
            hangs.set()
            answers.wait(LONG_S)

    watched.before = once("get", hang, watched)
    reader = threading.Thread(target=log.refresh)
    reader.start()
    assert hangs.wait(LONG_S)
    with pytest.raises(errors.RepositoryUnavailable, match="read of /somewhere"):
        log.refresh()
    assert calls_of_this_thread().behind is None
    answers.set()
    reader.join()
    assert log.refresh().version == 0
