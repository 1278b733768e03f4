"""Whose imports a mend reads: those that this host was asked for, and no file that a record only names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from diskyard import Diskyard, KiB, MiB, errors
from diskyard.caller import CALLER, Caller
from diskyard.daemon.resume import resume
from diskyard.fixes.runner import run_fix as run_fix_here
from diskyard.host import Host
from diskyard.host.identity import new_uuid
from diskyard.model.fix import Fix, Mend
from diskyard.model.records import FileSource, Image
from diskyard.model.requests import CheckStorageRepository
from diskyard.operations.building import new_ids
from diskyard.operations.engine import FollowUp
from diskyard.planner import copy as planner
from diskyard.planner.copy import PendingImage
from diskyard.service.verbs import run_unwatched
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Killed,
    Rig,
    fix_module,
    fixes,
    intercept,
    kill,
    picture,
    run_fix,
)

pytestmark = pytest.mark.embedded("what the state folder of one process remembers, without transfer folders")
ONE = (1, MiB, MiB)
NOT_ASKED = "does not remember that it was asked to import"


@pytest.fixture
def secret(rig: Rig) -> Path:
    """A file of this host that nobody asked to import."""
    made = rig.folder / "secret"
    made.write_bytes(picture(SIZE, ONE))
    return made


def forged(rig: Rig, path: str, fingerprint: str, digest: str = "0" * 32) -> str:
    """A pending import that another host has written into the log, as whoever writes to the storage can."""
    attacker = rig.host("attacker")
    repository, now = rig.repository("a", attacker), "2030-01-01T00:00:00.000000Z"
    asked = PendingImage(
        image_id=new_uuid(),
        ids=new_ids(),
        kind="virtual_disk",
        size_bytes=SIZE,
        source=FileSource(
            machine_id=Host.real().identity.machine_id, path=path, format="raw", fingerprint=fingerprint
        ),
        base_image_id=None,
        strategy="space",
        user_data={},
        request_digest=digest,
        now=now,
        captured_at=now,
        rate_limit_bytes_per_s=0,
    )
    author = attacker.service.engine.author("importImage", digest)
    repository.commit(lambda draft: planner.begin(draft, asked, repository.storage.capabilities), author)
    return asked.image_id


def mend_of(yard: Diskyard, image: str) -> Fix:
    (found,) = [fix for fix in fixes(yard, "a", "mend") if fix.image_id == image]
    return found


def expect_unread(rig: Rig, yard: Diskyard, image: str) -> None:
    """Its mend waits, says why, and reads nothing when it is run all the same."""
    fix = mend_of(yard, image)
    assert not fix.runnable
    assert NOT_ASKED in (fix.waits_for or "")
    assert image in (fix.waits_for or "")
    with pytest.raises(errors.PathNotAllowed, match=NOT_ASKED):
        run_fix(yard, "a", fix)
    assert [volume for volume in rig.files("a") if b"\1" * KiB in volume.read_bytes()] == []
    assert yard.get_image_status("a", image).status == "broken"


def remembered(rig: Rig, host: str = "one") -> list[str]:
    folder = rig.folder / f"state-{host}" / "imports"
    return [path.name[:36] for path in folder.iterdir()] if folder.exists() else []


def test_a_forged_record_is_not_followed(rig: Rig, secret: Path) -> None:
    image = forged(rig, str(secret), Host.real().files.fingerprint(str(secret)))
    expect_unread(rig, rig.yard, image)


def test_a_record_tells_nobody_what_files_there_are(rig: Rig, secret: Path) -> None:
    """One that names a file which is there, and one which is not, wait for the same."""
    there, not_there = (forged(rig, path, "1:2:3:4:5") for path in (str(secret), "/no/such/file"))
    waits = [mend_of(rig.yard, image).waits_for or "" for image in (there, not_there)]
    told = [text.replace(image, "") for text, image in zip(waits, (there, not_there), strict=True)]
    assert told[0].replace(str(secret), "") == told[1].replace("/no/such/file", "")


def test_the_storage_that_a_record_names_is_not_asked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang, or be mounted by being looked at."""
    forged(rig, "/no/such/file", "1:2:3:4:5")
    files, passing = rig.yard.service.host.files, rig.yard.service.host.files.passing
    asked: list[str] = []

    def noted(name: str, words: tuple[object, ...], do: Callable[[], object]) -> object:
        asked.append(str(words[:1]))
        return passing(name, words, do)

    monkeypatch.setattr(files, "passing", noted)
    assert runnable_for(rig, (str(rig.folder), "/srv")) == []
    assert [words for words in asked if "/srv" in words]
    assert [words for words in asked if "/no/such" in words] == []


@pytest.mark.parametrize("path", ["etc/passwd", "", "/etc/\0passwd", "etc/../../passwd"])
def test_paths_that_no_caller_could_give(rig: Rig, path: str) -> None:
    image = forged(rig, path, "1:2:3:4:5")
    assert runnable_for(rig, (str(rig.folder), "/")) == []
    with calling(("/",)), pytest.raises(errors.PathNotAllowed, match=NOT_ASKED):
        run_fix_here(rig.yard.service.engine, rig.repository("a"), Mend(image_id=image))


@pytest.mark.parametrize("change", ["path", "format", "force", "fingerprint", "digest", "id", "machine"])
def test_a_request_is_remembered_as_it_was(rig: Rig, secret: Path, change: str) -> None:
    """A record that was changed since is not the one that this host was asked for."""
    file = rig.folder / "asked.raw"
    file.write_bytes(picture(SIZE, (2, 0, MiB)))
    image = rig.yard.import_image("a", str(file), "raw", options=COMMIT_ONLY)
    assert mend_of(rig.yard, image).runnable
    repository = rig.repository("a")
    record = repository.state().images[image]
    assert record.pending is not None
    source = record.pending.source
    assert isinstance(source, FileSource)
    changed: dict[str, dict[str, Any]] = {
        "path": {"path": str(secret)},
        "format": {"format": "qcow2"},
        "force": {"force": True},
        "fingerprint": {"fingerprint": Host.real().files.fingerprint(str(secret))},
    }
    pending = replace(record.pending, source=replace(source, **changed.get(change, {})))
    put: Image = replace(record, pending=pending)
    if change == "digest":
        put = replace(put, request_digest="1" * 32)
    if change == "id":
        put = replace(put, id=new_uuid(), volume_id=None)
    repository.commit(lambda draft: draft.put_image(put), rig.yard.service.engine.author("setUserData"))
    if change == "machine":  # another machine with a state folder of its own, copied from this one
        shutil.copytree(rig.folder / "state-one" / "imports", rig.folder / "state-two" / "imports")
        (rig.folder / "state-two" / "imports").chmod(0o770)
        expect_unread(rig, rig.host("two"), image)
        return
    expect_unread(rig, rig.yard, put.id)


def test_a_copy_of_the_repository_is_another_place(rig: Rig, secret: Path) -> None:
    """Whoever copies a repository to a place of theirs cannot have the file read there."""
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    rig.yard.disconnect_storage_repository("a")
    place = Path(rig.place("a")["path"])
    shutil.copytree(place, place.with_name("stolen"))
    shutil.rmtree(place)
    place.with_name("stolen").rename(place)
    rig.yard.connect_storage_repository("a", rig.format, rig.place("a"))
    expect_unread(rig, rig.yard, image)


def test_another_process_of_the_host_goes_on(rig: Rig, secret: Path) -> None:
    """It has the same state folder; when the image is complete, nothing is remembered."""
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    assert remembered(rig) == [image]
    other = rig.host("one")
    run_fix(other, "a", mend_of(other, image))
    rig.expect("a", image, picture(SIZE, ONE))
    assert remembered(rig) == []


def test_it_is_remembered_before_it_is_committed(
    rig: Rig, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed just before its entry has left the request, and check forgets it."""
    before = rig.repository("a").state().version
    with monkeypatch.context() as patch:
        intercept(patch, rig.repository("a").storage, "put", before=kill)
        with pytest.raises(errors.InternalError) as caught:
            rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
        assert isinstance(caught.value.__cause__, Killed)
    (image,) = remembered(rig)
    other = rig.host("one")
    assert rig.repository("a", other).state().version == before
    assert fixes(other, "a") == []
    assert remembered(rig) == []
    assert (
        other.import_image("a", str(secret), "raw", options={**COMMIT_ONLY, "new_image_id": image}) == image
    )
    assert mend_of(other, image).runnable


def test_one_that_is_being_made_is_not_forgotten(
    rig: Rig, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check between remembering and committing leaves it: its image has the lease."""
    other = rig.host("one")
    intercept(monkeypatch, rig.repository("a").storage, "put", before=lambda: fixes(other, "a"))
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    assert mend_of(other, image).runnable


def test_what_cannot_be_remembered_is_not_begun(rig: Rig, secret: Path) -> None:
    """Nothing is committed that no mend would complete."""
    (rig.folder / "state-one" / "imports").write_bytes(b"")
    with pytest.raises(errors.StorageError):
        rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    assert rig.yard.list_images("a").images == ()


@pytest.mark.parametrize("folder", ["", "imports"])
def test_a_state_folder_that_others_write_to(rig: Rig, secret: Path, folder: str) -> None:
    """What is remembered there may be anybody's."""
    state = rig.folder / "state-one"
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    open_folder = state / folder
    open_folder.chmod(0o770)
    expect_unread(rig, rig.yard, image)
    with pytest.raises(errors.StorageError, match="write to") as caught:
        rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    assert "chmod go-w" in str(caught.value.advice)
    open_folder.chmod(0o750)
    assert mend_of(rig.yard, image).runnable


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of somebody else's is made by root")
def test_a_state_folder_of_somebody_else(rig: Rig, secret: Path) -> None:
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    os.chown(rig.folder / "state-one" / "imports", 65534, 65534)
    expect_unread(rig, rig.yard, image)


@pytest.mark.parametrize("by", ["this host", "another"])
def test_an_image_that_is_removed_is_forgotten(rig: Rig, secret: Path, by: str) -> None:
    image = rig.yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    if by == "this host":
        rig.yard.remove_image("a", image)
    else:
        other = rig.host("two")
        other.remove_image("a", image)
        assert other.wait_for_tasks(60)
        assert remembered(rig) == [image]
        fixes(rig.yard, "a")
    assert remembered(rig) == []


@pytest.mark.parametrize("named", [True, False])
def test_asking_again_makes_it_remembered(rig: Rig, secret: Path, named: bool) -> None:
    """What an earlier version committed goes on when it is asked for as before."""
    options: dict[str, Any] = {"AutoFix": False}
    if named:
        options["newImageId"] = new_uuid()
    asked = {"targetRepoId": "a", "path": str(secret), "format": "raw", "options": options}
    image = rig.call("importImage", **asked)
    shutil.rmtree(rig.folder / "state-one" / "imports")
    expect_unread(rig, rig.yard, image)
    again = {**asked, "options": {**options, "newImageId": image}}
    assert rig.call("importImage", **again) == image
    run_fix(rig.yard, "a", mend_of(rig.yard, image))
    rig.expect("a", image, picture(SIZE, ONE))


def test_asking_again_does_not_vouch_for_another_file(rig: Rig, secret: Path) -> None:
    """The record is forged with the id and digest of a request that somebody is about to repeat."""
    mine = rig.folder / "mine.raw"
    mine.write_bytes(picture(SIZE, (2, 0, MiB)))
    asked = {"targetRepoId": "a", "path": str(mine), "format": "raw", "options": {"AutoFix": False}}
    image = rig.call("importImage", **asked)
    repository = rig.repository("a")
    record = repository.state().images[image]
    assert record.pending is not None
    assert isinstance(record.pending.source, FileSource)
    fingerprint = Host.real().files.fingerprint(str(secret))
    source = replace(record.pending.source, path=str(secret), fingerprint=fingerprint)
    put = replace(record, pending=replace(record.pending, source=source))
    repository.commit(lambda draft: draft.put_image(put), rig.yard.service.engine.author("setUserData"))
    shutil.rmtree(rig.folder / "state-one" / "imports")
    assert rig.call("importImage", **{**asked, "options": {"AutoFix": False, "newImageId": image}}) == image
    expect_unread(rig, rig.yard, image)


def test_transfer_folders_are_for_whoever_runs_the_mend(rig: Rig, secret: Path) -> None:
    """A file in a folder that the caller may import from anyway is read; through a link it is not."""
    inside = rig.folder / "transfer"
    inside.mkdir()
    file = inside / "in.raw"
    file.write_bytes(picture(SIZE, ONE))
    (inside / "link").symlink_to(rig.folder)
    fingerprint = Host.real().files.fingerprint
    image = forged(rig, str(file), fingerprint(str(file)))
    for path in ("link/secret", "../secret"):
        forged(rig, f"{inside}/{path}", fingerprint(str(secret)))
    assert runnable_for(rig, ("/nowhere", str(inside))) == [image]
    assert runnable_for(rig, (str(rig.folder / "trans"),)) == []


def runnable_for(rig: Rig, folders: tuple[str, ...]) -> list[str]:
    """The images that a caller with these transfer folders may have completed."""
    with calling(folders):
        found = run_unwatched(rig.yard.service, CheckStorageRepository(repository_id="a"))
    return [fix.image_id for fix in found if fix.runnable]


@contextmanager
def calling(folders: tuple[str, ...] | None) -> Iterator[None]:
    """As in a request of a caller who imports from these folders alone."""
    token = CALLER.set(Caller("somebody", transfer_folders=folders))
    try:
        yield
    finally:
        CALLER.reset(token)


def test_a_folder_that_becomes_a_link_in_between(
    rig: Rig, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is what counts."""
    inside, away = rig.folder / "transfer", rig.folder / "away"
    inside.mkdir()
    (inside / "deep").mkdir()
    file = inside / "deep" / "secret"
    file.write_bytes(picture(SIZE, (2, 0, MiB)))
    fingerprint = Host.real().files.fingerprint
    image = forged(rig, str(file), fingerprint(str(file)))

    def swap() -> None:
        (inside / "deep").rename(away)
        (inside / "deep").symlink_to(rig.folder)

    engine = rig.yard.service.engine
    intercept(monkeypatch, fix_module("importing"), "open_given", before=swap)
    with calling((str(inside),)), pytest.raises(errors.PathNotAllowed, match="leads out"):
        run_fix_here(engine, rig.repository("a"), Mend(image_id=image))
    assert away.exists()
    assert [volume for volume in rig.files("a") if b"\1" * KiB in volume.read_bytes()] == []


@pytest.mark.parametrize("folders", [("/mine",), None])
def test_what_is_resumed_reaches_as_far_as_its_caller(
    rig: Rig, secret: Path, folders: tuple[str, ...] | None
) -> None:
    """A fix that a token asked for is started again with its folders; with its host's, if it had none."""
    yard = rig.host("one")
    image = yard.import_image("a", str(secret), "raw", options=COMMIT_ONLY)
    follow_up = FollowUp(rig.repository("a", yard), Mend(image_id=image), image, rate_limit_bytes_per_s=1)
    with calling(folders):
        yard.service.tasks.start([yard.service.job(follow_up)])
    yard.service.close(resumable=True)
    again = rig.host("one")
    (resumed,) = resume(again.service)
    assert resumed.outcome == "started", resumed
    again.service.close(resumable=True)
    (kept,) = [found.again for found in again.service.records.interrupted()]
    assert kept is not None
    assert kept.transfer_folders == folders
