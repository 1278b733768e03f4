"""One copy of an object replaced by a whole one of something else: the copy that is right does all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from diskyard.log.codec import RepositoryRecord, encode
from diskyard.log.store import LogKind
from diskyard.service import call
from diskyard.storage.localfs import layout
from diskyard.testing.corruption import Outside
from diskyard.testing.effort import Effort
from diskyard.testing.survey import survey
from diskyard.testing.world import World, host_named
from tests.conftest import Tally
from tests.corruption.cases import Bench, copies_of, expect_healthy, expect_readable, expect_whole
from tests.corruption.test_log_objects import targets

_SAMPLE = 10


@dataclass(frozen=True)
class Misplaced:
    """One copy of an object of repository a, and whose bytes it has.

    :param place: of the object whose bytes they are.
    :param by: the number of that object.
    """

    kind: LogKind
    number: int
    copy: int
    place: str
    by_kind: LogKind
    by: int

    def apply(self, world: World) -> bytes:
        """Put it there; the bytes that were right."""
        path = copies_of(world, self.kind, self.number)[self.copy]
        right = path.read_bytes()
        other = Path(layout.log_paths(str(world.folder / self.place), self.by_kind, self.by)[0])
        assert other.read_bytes() != right
        path.write_bytes(other.read_bytes())
        return right


def _cases(bench: Bench) -> Iterator[Misplaced]:
    """Each object and copy, by others of its repository, of its kind and not, and of another repository."""
    entries, checkpoints = bench.numbers("entry"), bench.numbers("checkpoint")
    for kind, number in targets(bench):
        numbers = entries if kind == "entry" else checkpoints
        others = [(numbers[0], "a"), (numbers[-1], "a"), (number - 1, "a"), (number + 1, "a"), (0, "b")]
        for copy in (0, 1):
            for by, place in others:
                if (place == "b" or by in numbers) and (place, by) != ("a", number):
                    yield Misplaced(kind, number, copy, place, kind, by)
            yield Misplaced(
                kind, number, copy, "a", "checkpoint" if kind == "entry" else "entry", entries[-1]
            )


def test_a_misplaced_copy_in_the_log(bench: Bench, outside: Outside, effort: Effort, tally: Tally) -> None:
    """Everything works, the copy is listed and renamed over, and no image is touched."""
    tally("corruption")
    cases = [case for case in dict.fromkeys(_cases(bench)) if _is_there(bench, case)]
    chosen = effort.sample(cases, _SAMPLE, "misplaced")
    for case in chosen:
        with bench.world() as world:
            right = case.apply(world)
            found = survey(world)
            expect_readable(world)
            assert not found.errors, (case, found.errors)
            named = f"replica of {case.kind} {case.number} again"
            assert any(named in words for words in found.listed), (case, found.listed)
            expect_whole(world, found)
            assert [path.read_bytes() for path in copies_of(world, case.kind, case.number)] == [right] * 2
            expect_healthy(world)
        outside.judge()
    tally("corruption", cases=len(cases), runs=len(chosen))


def _is_there(bench: Bench, case: Misplaced) -> bool:
    root = str(bench.prepared.folder / case.place)
    return Path(layout.log_paths(root, case.by_kind, case.by)[0]).exists()


def test_while_it_is_connected(bench: Bench, tally: Tally) -> None:
    """Who knows the log already goes on, whichever copy of the newest entry is replaced meanwhile."""
    tally("corruption")
    last = bench.numbers("entry")[-1]
    for copy in (0, 1):
        for place, by in (("a", last - 1), ("a", 0), ("b", 0)):
            with bench.world() as world:
                service, reader = (world.service(host_named(name)) for name in ("writer", "reader"))
                for host in (service, reader):
                    host.connections.get("a").state()
                case = Misplaced("entry", last, copy, place, "entry", by)
                if not _is_there(bench, case):
                    case = Misplaced("entry", last, copy, place, "entry", bench.numbers("entry")[0])
                right = case.apply(world)
                for value in range(2):
                    asked = {"repositoryId": "a", "imageId": world.names["d"], "userData": value}
                    call(service, "setUserData", asked)
                    assert reader.connections.get("a").state().version == last + 1 + value
                world.fix_all([reader], Random(0))
                assert [path.read_bytes() for path in copies_of(world, "entry", last)] == [right] * 2
                world.user_data["a", world.names["d"]] = 1
                world.judge(reader)
                for host in (service, reader):
                    host.close()
    tally("corruption", cases=6, runs=6)


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("by", ["another repository", "another format"])
def test_a_misplaced_record_of_the_repository(
    bench: Bench, outside: Outside, tally: Tally, copy: int, by: str
) -> None:
    """The log says which of two records is its own; the other is renamed over."""
    tally("corruption")
    with bench.world() as world:
        paths = [world.folder / "a" / f"repository.{letter}" for letter in "ab"]
        right = paths[copy].read_bytes()
        other = (world.folder / "b" / "repository.a").read_bytes()
        if by == "another format":
            other = encode(RepositoryRecord(marker="0" * 32, format="memory-1.0"))
        paths[copy].write_bytes(other)
        found = survey(world)
        assert not found.errors, found.errors
        expect_whole(world, found)
        assert [path.read_bytes() for path in paths] == [right] * 2
        expect_healthy(world)
    outside.judge()
    tally("corruption", cases=1, runs=1)
