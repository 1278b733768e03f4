"""What callers with tokens may do: scopes, bound repositories, revocation, rates."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from diskyard import Diskyard, errors
from diskyard.caller import CALLER
from diskyard.caller import Caller as Actor
from diskyard.daemon.tokens import Scope, Tokens
from diskyard.model.requests import ConnectStorageRepository, CreateStorageRepository
from diskyard.service.verbs import run_unwatched
from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20


class Caller:
    """Somebody with a token, on TLS."""

    def __init__(self, daemon: DaemonProcess, token: str) -> None:
        context = ssl.create_default_context(cafile=str(daemon.ca_file))
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=daemon.tls_url, verify=context, headers=headers, timeout=60)

    def post(self, verb: str, **parameters: object) -> httpx.Response:
        return self.http.post(f"/v1/{verb}", json=parameters)

    def code(self, verb: str, **parameters: object) -> str:
        answer = self.post(verb, **parameters)
        return "ok" if answer.status_code == 200 else str(answer.json()["code"])


class Office:
    """A daemon with two repositories, and who makes its tokens."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.tokens = Tokens(str(daemon.state_folder))
        self._callers: list[Caller] = []
        for name in ("a", "b"):
            asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place(name)}
            daemon.call("createStorageRepository", **asked)
            daemon.call("connectStorageRepository", repoId=name, **asked)

    def caller(
        self,
        name: str,
        scope: Scope,
        repositories: tuple[str, ...] | None = None,
        folders: tuple[str, ...] | None = None,
    ) -> Caller:
        _, text = self.tokens.create(name, scope, repositories, transfer_folders=folders)
        made = Caller(self.daemon, text)
        self._callers.append(made)
        return made

    def disk(self, repo: str) -> str:
        return str(self.daemon.call("createVirtualDisk", targetRepoId=repo, size=MiB))

    def end_of(self, task: dict[str, Any]) -> str:
        """How a task ends."""
        while task["state"] in ("queued", "running"):
            time.sleep(0.05)
            task = self.daemon.call("getTask", taskId=task["taskId"])
        return str(task["state"])

    def idle(self) -> None:
        """Wait until no task is left."""
        for task in self.daemon.call("listTasks"):
            assert self.end_of(task) == "done"

    def close(self) -> None:
        for caller in self._callers:
            caller.http.close()


@pytest.fixture
def office(daemon: DaemonProcess) -> Iterator[Office]:
    made = Office(daemon)
    yield made
    made.close()


def test_scopes(office: Office) -> None:
    place = {"repoFormat": "localfs-1.0", "connectionParameters": office.daemon.place("a")}
    looks = ("listImages", {"repositoryId": "a"})
    changes = ("createVirtualDisk", {"targetRepoId": "a", "size": MiB})
    connects = ("connectStorageRepository", {"repoId": "c", **place})
    may: dict[str, list[str]] = {}
    for scope in ("read", "write", "admin"):
        caller = office.caller(f"the-{scope}", scope)
        may[scope] = [caller.code(verb, **asked) for verb, asked in (looks, changes, connects)]
    assert may == {
        "read": ["ok", "Forbidden", "Forbidden"],
        "write": ["ok", "ok", "Forbidden"],
        "admin": ["ok", "ok", "ok"],
    }


def test_a_deep_check_notes_what_it_finds_and_so_needs_to_write(office: Office) -> None:
    asked = {"repositoryId": "a", "options": {"deep": True}}
    reader, writer = office.caller("reader", "read"), office.caller("writer", "write")
    assert reader.code("checkStorageRepository", repositoryId="a") == "ok"
    assert reader.code("checkStorageRepository", **asked) == "Forbidden"
    assert writer.code("checkStorageRepository", **asked) == "ok"


def test_a_revoked_token_is_of_no_use_at_once(office: Office) -> None:
    caller = office.caller("one", "admin")
    assert caller.code("getHostInfo") == "ok"
    office.tokens.revoke("one")
    assert caller.code("getHostInfo") == "Unauthorized"


def test_the_stream_of_a_revoked_token_ends(office: Office) -> None:
    caller = office.caller("one", "read")
    with caller.http.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        office.tokens.revoke("one")
        office.disk("a")
        assert [line for line in lines if line.startswith("data:")] == []


def test_a_bound_token_reaches_its_repositories_only(office: Office, tmp_path: Path) -> None:
    caller = office.caller("bound", "admin", ("a",))
    mine, others = office.disk("a"), office.disk("b")
    snapshot = office.daemon.call("createSnapshot", targetRepoId="b", baseVirtualDiskId=others)
    asked: dict[str, dict[str, object]] = {
        "listImages": {"repositoryId": "b"},
        "getImageInfo": {"repositoryId": "b", "imageId": others},
        "removeImage": {"repositoryId": "b", "imageId": others},
        "createVirtualDisk": {"targetRepoId": "b", "size": MiB},
        "checkStorageRepository": {"repositoryId": "a", "options": {"participatingRepositories": ["b"]}},
        "disconnectStorageRepository": {"repoId": "b"},
        "connectStorageRepository": {
            "repoId": "c",
            "repoFormat": "localfs-1.0",
            "connectionParameters": office.daemon.place("b"),
        },
        "createStorageRepository": {
            "repoFormat": "localfs-1.0",
            "connectionParameters": office.daemon.place("new"),
        },
    }
    assert {verb: caller.code(verb, **words) for verb, words in asked.items()} == dict.fromkeys(
        asked, "Forbidden"
    )
    # An image elsewhere is not found, and a hint does not help.
    assert caller.code("copyImage", targetRepoId="a", imageId=others) == "ImageNotFound"
    hinted = {"targetRepoId": "a", "imageId": others, "options": {"imageHints": {others: "b"}}}
    assert caller.code("copyImage", **hinted) == "Forbidden"
    based = {"targetRepoId": "a", "size": MiB, "baseSnapshotId": snapshot}
    assert caller.code("createVirtualDisk", **based) == "ImageNotFound"
    # What is its own it has; of others it sees nothing.
    assert caller.code("getImageInfo", repositoryId="a", imageId=mine) == "ok"
    listed = caller.post("listStorageRepositories").json()
    assert [found["repoId"] for found in listed] == ["a"]
    assert office.daemon.call("getImageInfo", repositoryId="b", imageId=others)["imageId"] == others
    assert not Path(office.daemon.place("new")["path"]).joinpath("repository.a").exists()


def test_a_bound_token_sees_its_tasks_and_events_only(office: Office) -> None:
    caller = office.caller("bound", "write", ("a",))
    with caller.http.stream("GET", "/v1/events?types=task") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        for repo in ("b", "a"):
            disk = office.disk(repo)
            office.daemon.call("removeImage", repositoryId=repo, imageId=disk)
        data = next(line for line in lines if line.startswith("data:"))
    assert '"repositoryId":"a"' in data
    tasks = office.daemon.call("listTasks")
    assert {task["repositoryId"] for task in tasks} == {"a", "b"}
    assert {task["repositoryId"] for task in caller.post("listTasks").json()} == {"a"}
    others = next(task["taskId"] for task in tasks if task["repositoryId"] == "b")
    assert caller.code("getTask", taskId=others) == "Forbidden"
    assert caller.code("stopTask", taskId=others) == "Forbidden"
    assert caller.http.get("/metrics").json()["code"] == "Forbidden"


def test_a_bound_token_does_not_end_by_force_what_it_cannot_see(office: Office) -> None:
    """That a copy into another repository goes on is known here, though not to the caller."""
    disk = office.disk("a")
    asked = {"targetRepoId": "b", "imageId": disk, "options": {"AutoFix": False}}
    copy = office.daemon.call("copyImage", **asked)
    place = office.daemon.place("b")
    office.daemon.call("disconnectStorageRepository", repoId="b")
    (fix,) = office.daemon.call("checkStorageRepository", repositoryId="a")
    connection = {"repoId": "b", "repoFormat": "localfs-1.0", "connectionParameters": place}
    office.daemon.call("connectStorageRepository", **connection)
    writer = office.caller("writer", "write", ("a",))
    listed = writer.post("checkStorageRepository", repositoryId="a").json()
    asked = {"repositoryId": "a", "fix": fix, "options": {"force": True}}
    assert office.end_of(writer.post("fixStorageRepository", **asked).json()) == "done"
    office.idle()
    (mend,) = office.daemon.call("checkStorageRepository", repositoryId="b")
    task = office.daemon.call("fixStorageRepository", repositoryId="b", fix=mend)
    assert office.end_of(task) == "done"
    assert office.daemon.call("getImageStatus", repositoryId="b", imageId=copy)["status"] == "optimized"
    assert listed == []


def test_a_bound_token_does_not_disconnect_what_is_copied_elsewhere(office: Office) -> None:
    file = office.daemon.folder / "transfer" / "file"
    file.write_bytes(bytes([1]) * MiB)
    disk = office.daemon.call("importImage", targetRepoId="a", path=str(file), format="raw")
    office.idle()
    asked = {"targetRepoId": "b", "imageId": disk, "options": {"rateLimit": 1}}
    office.daemon.call("copyImage", **asked)
    admin = office.caller("of-a", "admin", ("a",))
    assert admin.code("disconnectStorageRepository", repoId="a") == "RepositoryInUse"


def test_a_name_of_a_repository_is_not_guessed_from_errors(office: Office) -> None:
    caller = office.caller("bound", "read", ("a",))
    there = caller.post("listImages", repositoryId="b").json()
    not_there = caller.post("listImages", repositoryId="x").json()
    assert there["detail"].replace("'b'", "") == not_there["detail"].replace("'x'", "")


def test_too_many_requests(short_folder: Path) -> None:
    with DaemonProcess(short_folder, {"limits": {"requests_per_s": 1}}) as daemon:
        office = Office(daemon)
        caller = office.caller("quick", "read")
        answers = [caller.http.post("/v1/getHostInfo") for _ in range(20)]
        assert [answer.status_code for answer in answers[:2]] == [200, 200]
        # Each refusal comes a moment late, in which there may be room for one more.
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "1")}
        # Nobody else is kept waiting for that.
        assert office.caller("other", "read").code("getHostInfo") == "ok"
        office.close()


def test_what_is_kept_of_a_mend_says_nothing_of_other_repositories(office: Office) -> None:
    caller = office.caller("bound", "read", ("a",))
    source = office.disk("b")
    copy = office.daemon.call("copyImage", targetRepoId="a", imageId=source, options={"AutoFix": False})
    volumes = list(Path(office.daemon.place("b")["path"], "volumes").iterdir())
    for volume in volumes:
        volume.unlink()
    (mend,) = office.daemon.call("checkStorageRepository", repositoryId="a", options={"types": ["mend"]})
    assert "(b: " in mend["waitsFor"]  # for who may use b
    task = office.daemon.call("fixStorageRepository", repositoryId="a", fix=mend)
    ended = office.daemon.wait_for_task(task["taskId"])
    assert ended["error"]["code"] == "ImageBroken"
    seen = caller.post("getTask", taskId=task["taskId"]).text
    seen += caller.post("getImageStatus", repositoryId="a", imageId=copy).text
    assert "no connected repository has image" in seen
    assert "(b" not in seen
    assert not any(volume.name[:8] in seen for volume in volumes)


def test_a_token_with_transfer_folders_uses_these_only(office: Office, tmp_path: Path) -> None:
    mine, general = tmp_path / "mine", office.daemon.folder / "transfer"
    mine.mkdir()
    for folder in (mine, general):
        (folder / "in").write_bytes(bytes([1]) * MiB)
    own = office.caller("own", "write", None, (str(mine),))
    usual = office.caller("usual", "write")
    codes = [
        caller.code("importImage", targetRepoId="a", path=str(folder / "in"), format="raw")
        for caller in (own, usual)
        for folder in (mine, general)
    ]
    assert codes == ["ok", "PathNotAllowed", "PathNotAllowed", "ok"]
    disk = office.disk("a")
    out = {"repositoryId": "a", "imageId": disk, "format": "raw"}
    assert own.code("exportImage", path=str(general / "out"), **out) == "PathNotAllowed"
    assert own.code("exportImage", path=str(mine / "out"), **out) == "ok"
    office.idle()


def test_a_fix_of_a_token_reads_in_its_folders_only(office: Office, tmp_path: Path) -> None:
    """What this host was not asked for is read only by who could ask for it."""
    mine, general = tmp_path / "mine", office.daemon.folder / "transfer"
    mine.mkdir()
    with Diskyard(state_folder=str(tmp_path / "of another host")) as other:
        other.connect_storage_repository("a", "localfs-1.0", office.daemon.place("a"))
        for folder in (mine, general):
            (folder / "in").write_bytes(bytes([1]) * MiB)
            other.import_image("a", str(folder / "in"), "raw", options={"auto_fix": False})
    own, usual = office.caller("own", "write", None, (str(mine),)), office.caller("usual", "write")
    listed = own.post("checkStorageRepository", repositoryId="a").json()
    assert sorted(fix["runnable"] for fix in listed) == [False, True]
    seen = {
        fix["imageId"]: fix["runnable"]
        for fix in usual.post("checkStorageRepository", repositoryId="a").json()
    }
    assert seen == {fix["imageId"]: not fix["runnable"] for fix in listed}
    for fix in sorted(listed, key=lambda found: bool(found["runnable"])):
        task = own.post("fixStorageRepository", repositoryId="a", fix=fix).json()
        assert office.end_of(task) == ("done" if fix["runnable"] else "failed")


def place(path: Path) -> dict[str, object]:
    return {"repoFormat": "localfs-1.0", "connectionParameters": {"path": str(path)}}


@pytest.fixture
def outside(office: Office, tmp_path: Path) -> Path:
    """A repository outside of the folders in which they may be over TCP, connected over the socket."""
    made = tmp_path / "outside"
    office.daemon.call("createStorageRepository", **place(made))
    office.daemon.call("connectStorageRepository", repoId="outside", **place(made))
    return made


def test_repositories_are_in_their_folders(office: Office, outside: Path) -> None:
    """Over TCP they are made, connected and removed in these alone, however the path is written."""
    admin, inside = office.caller("root", "admin"), office.daemon.folder
    (inside / "link").symlink_to(outside.parent)
    for path in (outside, inside / "link" / "outside", inside / ".." / "outside", inside.parent):
        assert admin.code("connectStorageRepository", repoId="x", **place(path)) == "PathNotAllowed", path
        asked = place(path)
        asked["connectionParameters"] = {"path": str(path), "newMarker": True}
        assert admin.code("connectStorageRepository", repoId="x", **asked) == "PathNotAllowed", path
    for path in (outside.parent / "new", inside / "link" / "new", inside.with_name(f"{inside.name}x")):
        assert admin.code("createStorageRepository", **place(path)) == "PathNotAllowed", path
        assert not path.exists()
    assert admin.code("removeStorageRepository", repositoryId="outside") == "PathNotAllowed"
    # What is connected is used as any other, and inside all of it may be done.
    assert admin.code("createVirtualDisk", targetRepoId="outside", size=MiB) == "ok"
    assert admin.code("disconnectStorageRepository", repoId="outside") == "ok"
    for verb, words in (
        ("createStorageRepository", place(inside / "new")),
        ("connectStorageRepository", {"repoId": "new", **place(inside / "new")}),
        ("removeStorageRepository", {"repositoryId": "new"}),
    ):
        assert admin.code(verb, **words) == "ok"


@pytest.mark.parametrize("asked", [{"mode": "0750"}, {"owner": os.geteuid(), "group": os.getegid()}])
def test_whose_files_are_is_asked_for_over_tcp_too(office: Office, asked: dict[str, object]) -> None:
    admin, made = office.caller("root", "admin"), office.daemon.folder / "given"
    words = place(made)
    words["connectionParameters"] = {"path": str(made), **asked}
    assert admin.code("createStorageRepository", **words) == "ok"
    about = made.stat()
    assert (about.st_uid, about.st_gid) == (os.geteuid(), os.getegid())
    assert stat.S_IMODE(about.st_mode) == (0o750 if "mode" in asked else 0o751)
    assert admin.code("connectStorageRepository", repoId="given", **words) == "InvalidParameter"
    assert admin.code("connectStorageRepository", repoId="given", **place(made)) == "ok"


def test_a_refused_path_leaves_the_daemon_as_it_was(short_folder: Path) -> None:
    """The folder of the daemon's state is led to by a link, and so it stays."""
    lib, data = short_folder / "lib", short_folder / "data"
    lib.mkdir()
    data.mkdir()
    (lib / "yard").symlink_to(data)
    with DaemonProcess(short_folder / "d", state_folder=lib / "yard") as daemon:
        office = Office(daemon)
        admin = office.caller("root", "admin")
        for verb, words in (("createStorageRepository", {}), ("connectStorageRepository", {"repoId": "x"})):
            assert admin.code(verb, **words, **place(lib)) == "PathNotAllowed"
        with daemon.client() as client:
            codes = [
                client.post(f"/v1/{verb}", json={**words, **place(lib)}).json()["code"]
                for verb, words in (
                    ("createStorageRepository", {}),
                    ("connectStorageRepository", {"repoId": "x"}),
                )
            ]
        assert codes == ["NotEmpty", "NotARepository"]
        asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("c")}
        daemon.call("createStorageRepository", **asked)
        daemon.call("connectStorageRepository", repoId="c", **asked)
        office.disk("c")
        office.close()


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_folder_that_becomes_a_link_once_it_was_judged_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_copy: bool
) -> None:
    """Neither is a repository made where it leads, nor is one there given another marker."""
    allowed, outside = tmp_path / "in", tmp_path / "out"
    for folder in (allowed / "deep", outside):
        folder.mkdir(parents=True)
    with Diskyard() as yard:
        if is_copy:
            yard.create_storage_repository("localfs-1.0", {"path": str(outside / "r")})
            for target in (allowed / "deep" / "r", outside / "copy"):
                shutil.copytree(outside / "r", target)
            (outside / "r").rename(tmp_path / "original")
            (outside / "copy").rename(outside / "r")
        files = yard.service.host.files
        judge, before = files.is_inside, records(outside)

        def swap(folder: str, folders: Sequence[str]) -> bool:
            answer = judge(folder, folders)
            if not (tmp_path / "away").exists():
                (allowed / "deep").rename(tmp_path / "away")
                (allowed / "deep").symlink_to(outside)
            return answer

        monkeypatch.setattr(files, "is_inside", swap)
        where = {"path": str(allowed / "deep" / "r")}
        asked = (
            ConnectStorageRepository(
                repo_id="r", repo_format="localfs-1.0", connection_parameters={**where, "newMarker": True}
            )
            if is_copy
            else CreateStorageRepository(repo_format="localfs-1.0", connection_parameters=where)
        )
        token = CALLER.set(Actor("token:x", repository_folders=(str(allowed),)))
        try:
            with pytest.raises(errors.DiskyardError):
                run_unwatched(yard.service, asked)
        finally:
            CALLER.reset(token)
    assert (tmp_path / "away").exists()
    assert records(outside) == before


def records(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_without_such_folders_there_are_none(short_folder: Path) -> None:
    """And the error says so, and what to do; on the socket nothing is forbidden."""
    with DaemonProcess(short_folder, {"repositories": {"folders": []}}) as daemon:
        office = Office(daemon)
        answer = office.caller("root", "admin").post("createStorageRepository", **place(short_folder / "new"))
        assert (answer.status_code, answer.json()["code"]) == (403, "PathNotAllowed")
        assert "there are none" in answer.json()["detail"]
        assert "[repositories] folders" in answer.json()["advice"]
        office.close()


def test_a_place_that_becomes_a_link_in_between_is_not_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "in" / "deep", tmp_path / "out"
    with Diskyard() as yard:
        for folder in (inside, outside):
            folder.mkdir(parents=True)
            yard.create_storage_repository("localfs-1.0", {"path": str(folder / "r")})
        service, resolve = yard.service, yard.service.host.files.resolve

        def swap(path: str) -> str:
            found = resolve(path)
            if path == str(inside / "r") and not (tmp_path / "away").exists():
                inside.rename(tmp_path / "away")
                inside.symlink_to(outside)
            return found

        monkeypatch.setattr(service.host.files, "resolve", swap)
        token = CALLER.set(Actor("token:x", repository_folders=(str(tmp_path / "in"),)))
        asked = ConnectStorageRepository(
            repo_id="r", repo_format="localfs-1.0", connection_parameters={"path": str(inside / "r")}
        )
        try:
            with pytest.raises(errors.PathNotAllowed):
                run_unwatched(service, asked)
        finally:
            CALLER.reset(token)
        assert service.connections.remembered() == {}
