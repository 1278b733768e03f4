"""The names, defaults and refusals of every verb, as callers on the wire see them."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

import msgspec
import pytest

from diskyard import MiB, errors
from diskyard.model.options import wire_name
from diskyard.service import VERBS, call
from tests.api.helpers import Rig, code_of

NOBODY = str(uuid.UUID(int=1))

#: Parameters by verb: those without a default, then those with it. A default of ... is not compared.
PARAMETERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "connectStorageRepository": (["repoId", "repoFormat"], {"connectionParameters": {}}),
    "disconnectStorageRepository": (["repoId"], {}),
    "createVirtualDisk": (["targetRepoId", "size"], {"baseSnapshotId": None, "userData": {}, "options": ...}),
    "createSnapshot": (["targetRepoId", "baseVirtualDiskId"], {"userData": {}, "options": ...}),
    "copyImage": (["targetRepoId", "imageId"], {"baseImageId": None, "userData": {}, "options": ...}),
    "removeImage": (["repositoryId", "imageId"], {"options": ...}),
    "getImageStatus": (["repositoryId", "imageId"], {}),
    "checkStorageRepository": (["repositoryId"], {"options": ...}),
    "fixStorageRepository": (["repositoryId", "fix"], {"options": ...}),
    "createStorageRepository": (["repoFormat"], {"connectionParameters": {}}),
    "removeStorageRepository": (["repositoryId"], {}),
    "listStorageRepositories": ([], {}),
    "listImages": (
        ["repositoryId"],
        {"kind": None, "status": None, "imageIds": None, "limit": 1000, "cursor": None},
    ),
    "getImageInfo": (["repositoryId", "imageId"], {}),
    "setUserData": (["repositoryId", "imageId", "userData"], {"options": ...}),
    "setStrategy": (["repositoryId", "imageId", "strategy"], {"options": ...}),
    "extendVirtualDisk": (["repositoryId", "imageId", "size"], {"options": ...}),
    "revertVirtualDisk": (["repositoryId", "imageId", "snapshotId"], {"options": ...}),
    "untrackChanges": (["repositoryId", "imageId"], {"copyImageId": None}),
    "prepareImage": (["repositoryId", "imageId"], {"options": ...}),
    "teardownImage": (["repositoryId", "imageId"], {"options": ...}),
    "importImage": (["targetRepoId", "path", "format"], {"userData": {}, "options": ...}),
    "exportImage": (["repositoryId", "imageId", "path", "format"], {"options": ...}),
    "listTasks": ([], {"imageId": None}),
    "getTask": (["taskId"], {}),
    "stopTask": (["taskId"], {}),
    "getHostInfo": ([], {}),
}

COMMON: dict[str, Any] = {
    "AutoFix": True,
    "strategy": None,
    "participatingRepositories": None,
    "imageHints": {},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "createVirtualDisk": {"newImageId": None, "optimizeNow": False, "rateLimit": 0},
    "createSnapshot": {"newImageId": None},
    "copyImage": {
        "newImageId": None,
        "as": None,
        "optimizeNow": False,
        "trackChanges": False,
        "rateLimit": 0,
    },
    "importImage": {"newImageId": None, "as": None, "optimizeNow": False, "rateLimit": 0, "force": False},
    "checkStorageRepository": {"deep": False, "types": None, "imageIds": None},
    "fixStorageRepository": {"rateLimit": 0, "force": False, "runFirst": False},
    "exportImage": {"rateLimit": 0},
    "setUserData": {"ifRevision": None},
    "prepareImage": {"readOnly": None, "owner": None, "serve": None, "live": None},
    "teardownImage": {"owner": None, "hostID": None, "force": False},
}

VALID: dict[str, Any] = {
    "repoId": "a",
    "targetRepoId": "a",
    "repositoryId": "a",
    "repoFormat": "localfs-1.0",
    "size": MiB,
    "baseVirtualDiskId": NOBODY,
    "imageId": NOBODY,
    "snapshotId": NOBODY,
    "userData": {},
    "strategy": "space",
    "path": "/nonexistent",
    "format": "raw",
    "taskId": "none",
    "fix": {},
}


def valid(verb: str) -> dict[str, Any]:
    return {name: VALID[name] for name in PARAMETERS[verb][0]}


def test_the_verbs_are_those_of_the_api() -> None:
    """No verb is missing, none is there besides."""
    assert set(VERBS) == set(PARAMETERS)


@pytest.mark.parametrize("verb", VERBS)
def test_parameters_and_defaults(verb: str) -> None:
    """Parameters have the API's names, order of need, and defaults."""
    required, defaults = PARAMETERS[verb]
    fields = {field.encode_name: field for field in msgspec.structs.fields(VERBS[verb].request)}
    assert [name for name, field in fields.items() if field.required] == required
    assert {name for name, field in fields.items() if not field.required} == set(defaults)
    request = msgspec.convert(
        {**valid(verb), "fix": FIX} if verb == "fixStorageRepository" else valid(verb), VERBS[verb].request
    )
    shown = msgspec.to_builtins(request)
    for name, default in defaults.items():
        assert default is ... or shown[name] == default
    if "options" in defaults:
        assert shown["options"] == {**COMMON, **OPTIONS.get(verb, {})}


FIX = {
    "fixId": "clean-0",
    "type": "clean",
    "description": "",
    "imageId": None,
    "runnable": True,
    "waitsFor": None,
    "heldBy": None,
    "freesBytes": 0,
    "movesBytes": 0,
    "needsBytes": 0,
    "data": {"marker": "m", "action": {"do": "cleanGarbage", "name": "x"}},
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_parameter_is_refused(rig: Rig, verb: str) -> None:
    """A parameter or option that the verb does not have is never ignored."""
    good = valid(verb)
    if "fix" in good:
        good["fix"] = FIX
    assert rig.refusal(verb, **good, nonsense=1) == "InvalidParameter"
    if "options" in PARAMETERS[verb][1]:
        assert rig.refusal(verb, **good, options={"nonsense": 1}) == "InvalidParameter"
        assert rig.refusal(verb, **good, options={"auto_fix": False}) == "InvalidParameter"
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        assert rig.refusal(verb, **rest) == "InvalidParameter"


@pytest.mark.parametrize("parameters", [None, [], "text", 1])
def test_parameters_are_an_object(rig: Rig, parameters: object) -> None:
    """Anything but an object of parameters is refused as such."""
    assert code_of(lambda: call(rig.yard.service, "getHostInfo", parameters)) == "InvalidParameter"


def test_an_unknown_verb_is_refused(rig: Rig) -> None:
    """The error lists the verbs."""
    with pytest.raises(errors.InvalidParameter, match="makeCoffee") as caught:
        rig.call("makeCoffee")
    assert "createVirtualDisk" in caught.value.advice


@pytest.mark.parametrize("size", [0, -512, 511, 513, 1.5, "1G", True, (64 << 40), 1 << 63, None])
def test_bad_sizes(rig: Rig, size: object) -> None:
    """Sizes are positive multiples of 512 that every format can have."""
    assert rig.refusal("createVirtualDisk", targetRepoId="a", size=size) == "InvalidParameter"
    disk = rig.disk("a")
    parameters = {"repositoryId": "a", "imageId": disk, "size": size}
    assert rig.refusal("extendVirtualDisk", **parameters) == "InvalidParameter"
    assert rig.files("a") == [rig.volume_path("a", disk)]


@pytest.mark.parametrize("size", [512, MiB + 512])
def test_odd_sizes_are_kept(rig: Rig, size: int) -> None:
    """A disk has exactly the size that was asked for, as QEMU sees it."""
    disk = rig.call("createVirtualDisk", targetRepoId="a", size=size)
    rig.expect("a", disk, bytes(size))


@pytest.mark.parametrize("bad", ["", "x", NOBODY.upper().replace("1", "A"), "../" + NOBODY, NOBODY + " ", 5])
def test_bad_ids(rig: Rig, bad: object) -> None:
    """An image id is a UUID in lower case, nothing else, wherever it is given."""
    for verb, (required, defaults) in PARAMETERS.items():
        for name in {
            "imageId",
            "baseSnapshotId",
            "baseVirtualDiskId",
            "baseImageId",
            "snapshotId",
            "copyImageId",
        } & {*required, *defaults}:
            words = {**valid(verb), name: bad}
            assert rig.refusal(verb, **words) == "InvalidParameter"
    options = {"newImageId": bad}
    assert rig.refusal("createVirtualDisk", targetRepoId="a", size=MiB, options=options) == (
        "InvalidParameter"
    )


@pytest.mark.parametrize(
    "user_data", [None, [], "text", 1.5, {"a": {"b": [1, None, True]}}, "ü" * 8000, {"k": "x" * 16376}]
)
def test_user_data_is_kept_as_sent(rig: Rig, user_data: object) -> None:
    """Any JSON up to 16 KiB comes back as it was."""
    disk = rig.call("createVirtualDisk", targetRepoId="a", size=MiB, userData=user_data)
    assert rig.call("getImageInfo", repositoryId="a", imageId=disk)["userData"] == user_data


def test_too_much_user_data_is_refused(rig: Rig) -> None:
    """One byte more than 16 KiB is refused by every verb that takes userData, and nothing is made."""
    disk = rig.disk("a")
    too_much = "x" * (16 * 1024 - 1)
    calls: dict[str, dict[str, Any]] = {
        "createVirtualDisk": {"targetRepoId": "a", "size": MiB},
        "createSnapshot": {"targetRepoId": "a", "baseVirtualDiskId": disk},
        "copyImage": {"targetRepoId": "b", "imageId": disk},
        "importImage": {"targetRepoId": "a", "path": str(rig.volume_path("a", disk)), "format": "raw"},
        "setUserData": {"repositoryId": "a", "imageId": disk},
    }
    for verb, words in calls.items():
        refused = rig.refusal(verb, **words, userData=too_much)
        assert refused == "InvalidParameter"
    assert len(rig.files("a")) == 1
    assert rig.files("b") == []


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "imageId" in PARAMETERS[verb][0]])
def test_an_image_that_is_not_there(rig: Rig, verb: str) -> None:
    """Every verb on an image says ImageNotFound, and names the image."""
    words = {**valid(verb), "path": str(rig.folder / "out.raw")}
    if "path" not in PARAMETERS[verb][0]:
        del words["path"]
    with pytest.raises(errors.ImageNotFound) as caught:
        rig.call(verb, **words)
    assert caught.value.to_json()["imageId"] == NOBODY


@pytest.mark.parametrize(
    "verb",
    [v for v in VERBS if {"repositoryId", "targetRepoId"} & set(PARAMETERS[v][0]) and v != "listTasks"],
)
def test_a_repository_that_is_not_connected(rig: Rig, verb: str) -> None:
    """Every verb on a repository says RepositoryNotConnected, and names it."""
    name = "repositoryId" if "repositoryId" in PARAMETERS[verb][0] else "targetRepoId"
    words = {**valid(verb), name: "nowhere"}
    if "fix" in words:
        words["fix"] = FIX
    with pytest.raises(errors.RepositoryNotConnected) as caught:
        rig.call(verb, **words)
    assert caught.value.to_json()["repositoryId"] == "nowhere"


def test_wrong_kinds(rig: Rig) -> None:
    """A Snapshot is refused where a VirtualDisk is needed, and the other way round."""
    disk = rig.disk("a")
    snapshot = rig.yard.create_snapshot("a", disk)
    yard = rig.yard
    calls: dict[str, dict[str, Any]] = {
        "createSnapshot": {"targetRepoId": "a", "baseVirtualDiskId": snapshot},
        "extendVirtualDisk": {"repositoryId": "a", "imageId": snapshot, "size": 64 * MiB},
        "revertVirtualDisk": {"repositoryId": "a", "imageId": snapshot, "snapshotId": snapshot},
        "untrackChanges": {"repositoryId": "a", "imageId": snapshot},
        "prepareImage": {"repositoryId": "a", "imageId": snapshot, "options": {"readOnly": False}},
    }
    for verb, words in calls.items():
        assert rig.refusal(verb, **words) == "NotAVirtualDisk"
    assert code_of(lambda: yard.create_virtual_disk("a", 8 * MiB, disk)) == "NotASnapshot"
    assert code_of(lambda: yard.revert_virtual_disk("a", disk, disk)) == "NotASnapshot"


def test_names_of_the_results(rig: Rig) -> None:
    """Results have the API's names on the wire."""
    disk = rig.call("createVirtualDisk", targetRepoId="a", size=MiB)
    status = rig.call("getImageStatus", repositoryId="a", imageId=disk)
    assert set(status) == {"status", "hostID", "stage", "percent_complete", "last_error", "taskId"}
    info = rig.call("getImageInfo", repositoryId="a", imageId=disk)
    assert set(info) == {
        "imageId", "kind", "sizeBytes", "exclusiveBytes", "sharedBytes", "strategy", "status", "createdAt",
        "capturedAt", "userData", "revision", "tracking", "attachments",
    }  # fmt: skip
    assert rig.call("listImages", repositoryId="a") == {"images": [info], "nextCursor": None}
    attached = rig.call("prepareImage", repositoryId="a", imageId=disk)
    assert {"blockdev", "path", "format", "nbdUri", "libvirtXml", "owner", "mode"} <= set(attached)
    host = rig.call("getHostInfo")
    assert host["hostID"] == "one"
    formats = {found["name"]: found for found in host["formats"]}
    assert set(formats) >= {"localfs-1.0", "memory-1.0"}
    wanted = {"path", "sharedByOneHost", "owner", "group", "mode"}
    assert set(formats["localfs-1.0"]["parameters"]) == wanted
    for name, can in formats[rig.format]["capabilities"].items():
        has = {wire_name(key): has for key, has in asdict(rig.repository("a").storage.capabilities).items()}
        assert can in (None, has[name])
    rig.call("teardownImage", repositoryId="a", imageId=disk)
    task = rig.call(
        "exportImage", repositoryId="a", imageId=disk, path=str(rig.folder / "out.raw"), format="raw"
    )
    assert {"taskId", "verb", "imageId", "state", "stage", "percent", "changed", "error"} <= set(task)
    rig.wait()
    assert rig.call("getTask", taskId=task["taskId"])["state"] == "done"
    assert rig.call("listTasks", imageId=disk)[0]["taskId"] == task["taskId"]
