"""Requests: the wire's names and defaults, and nothing but what they list."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from diskyard.model import requests as ask
from diskyard.model.fix import CleanVolume, FixData, fix_id
from diskyard.model.options import CopyOptions, wire_name

ID = "00000000-0000-4000-8000-000000000000"
CREATE: dict[str, Any] = {"targetRepoId": "A", "size": 512}


def read(words: dict[str, Any], kind: type[ask.Request] = ask.CreateVirtualDisk) -> Any:
    return msgspec.json.decode(msgspec.json.encode(words), type=kind)


def test_defaults() -> None:
    request = read(CREATE)
    assert (request.base_snapshot_id, request.user_data) == (None, {})
    options = request.options
    assert (options.auto_fix, options.strategy, options.new_image_id) == (True, None, None)
    assert (options.optimize_now, options.rate_limit, options.image_hints) == (False, 0, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 513},
        {"size": -512},
        {"size": 512.5},
        {"size": "512"},
        {"size": 1 << 70},
        {"targetRepoId": ""},
        {"targetRepoId": "x" * 256},
        {"targetRepoId": None},
        {"baseSnapshotId": "../../etc"},
        {"baseSnapshotId": ID.upper().replace("0", "A")},
        {"baseSnapshotId": ID + "\n"},
        {"colour": "blue"},
        {"options": {"autoFix": False}},
        {"options": {"AutoFix": 1}},
        {"options": {"strategy": "fast"}},
        {"options": {"newImageId": "d1"}},
        {"options": {"rateLimit": -1}},
        {"options": {"rateLimit": 1 << 63}},
        {"options": {"trackChanges": True}},
        {"options": {"imageHints": {"d1": "A"}}},
        {"options": {"participatingRepositories": "A"}},
        {"options": []},
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read({**CREATE, **wrong})


def test_a_required_parameter_is_missing() -> None:
    for name in CREATE:
        with pytest.raises(msgspec.ValidationError):
            read({key: value for key, value in CREATE.items() if key != name})


def test_create_snapshot_has_no_size() -> None:
    words = {"targetRepoId": "A", "baseVirtualDiskId": ID}
    assert read(words, ask.CreateSnapshot).base_virtual_disk_id == ID
    with pytest.raises(msgspec.ValidationError):
        read({**words, "size": 512}, ask.CreateSnapshot)


def test_wire_names() -> None:
    names = {wire_name(field.name) for field in msgspec.structs.fields(CopyOptions)}
    assert names == {
        "AutoFix", "strategy", "participatingRepositories", "imageHints", "newImageId", "optimizeNow",
        "rateLimit", "as", "trackChanges",
    }  # fmt: skip
    assert wire_name("host_id") == "hostID"


def test_a_fix_id_tells_one_finding_from_another() -> None:
    one, two = (FixData("m", CleanVolume(volume_id=name)) for name in "ab")
    assert fix_id(one) == fix_id(FixData("m", CleanVolume(volume_id="a")))
    assert len({fix_id(one), fix_id(two), fix_id(FixData("n", one.action))}) == 3
