"""Judging a storm: another host fixes everything, every image is right, and without them nothing is left."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from diskyard import errors
from diskyard.testing.attackers.hosts import Counts, Places, YardHost
from diskyard.testing.attackers.ledger import Kept, Ledger
from diskyard.testing.attackers.sectors import ProgramFailed
from diskyard.testing.attackers.storm_faults import FOREIGN


def end(folder: Path, places: Places, foreign: Mapping[Path, bytes]) -> Counts:
    """Judge a storm and return what was found.

    :param foreign: files that the vandal has left, which must be unchanged.
    """
    told, host = Counts(), YardHost("survivor", folder, places)
    rng = random.Random(0)
    try:
        _detach_all(host, told)
        told.fixes += host.fix_all(list(places), rng)
        ledger = Ledger(folder / "ledger")
        for kept in ledger.all():
            _judge(host, ledger, kept, told)
        told.fixes += host.fix_all(list(places), rng)
        _judge_names(host, ledger, told)
        told.serious += _listed(host)
        if told.found:
            told.serious.append(f"all of it as it was then is in {_kept(folder, places)}")
        _remove_all(host, rng, told)
        told.serious += [f"left over: {left}" for place in places for left in _left(host, place)]
    finally:
        host.close()
    for path, data in foreign.items():
        if not path.exists() or path.read_bytes() != data:
            told.serious.append(f"a foreign file is gone or changed: {path}")
    return told


def _kept(folder: Path, places: Places) -> Path:
    """A copy of everything, to examine after the storm and its file systems are gone."""
    target = Path(tempfile.mkdtemp(prefix="diskyard-storm-"))
    mounts = {str(path.parent) for path in places.values()}
    for name, source in {"storm": folder, **places}.items():
        shutil.copytree(source, target / name, ignore=lambda at, names: _passed_over(at, names, mounts))
    return target


def _passed_over(at: str, names: list[str], mounts: Collection[str]) -> set[str]:
    """What is not copied: the file systems and the files that they are in; sockets."""
    found = (Path(at, name) for name in names)
    return {path.name for path in found if str(path) in mounts or path.name == "disk" or path.is_socket()}


def _detach_all(host: YardHost, told: Counts) -> None:
    """Detach images from the guests of clients that were killed."""
    for place in host.places:
        for attachment in host.repo(place).state().attachments.values():
            options = {"owner": attachment.owner, "hostID": attachment.host.host_id, "force": True}
            host("teardownImage", repositoryId=place, imageId=attachment.image_id, options=options)
            told.did("detached in the end")


def _judge(host: YardHost, ledger: Ledger, kept: Kept, told: Counts) -> None:
    words = f"{kept.kind} {kept.image_id} in {kept.place} ({kept.how}; {kept.owner}'s, {kept.state})"
    try:
        data = host.read(kept.place, kept.image_id)
    except errors.ImageNotFound:
        if kept.state == "there":
            told.broken.append(f"gone: {words}")
        return
    except errors.ImageBroken as error:
        if ledger.waits_for_ever(kept) and _lacks_base(host, kept):
            told.did("copy whose base was removed")
            host("removeImage", repositoryId=kept.place, imageId=kept.image_id, options={"AutoFix": False})
        elif kept.state == "there":
            told.broken.append(f"broken for ever: {words}: {error.message}")
        return
    except ProgramFailed as error:
        told.broken.append(f"cannot be read: {words}: {error}")
        return
    if kept.state == "asked":
        ledger.take_from_source(kept)
    if kept.moments and (wrong := ledger.wrong(kept, data, kept)):
        told.wrong.append(wrong)
    else:
        told.reads += 1


def _lacks_base(host: YardHost, kept: Kept) -> bool:
    """Whether a copy still waits for a base that does not exist; a base that it had would have been kept."""
    images = host.repo(kept.place).state().images
    image = images.get(kept.image_id)
    while image is not None and image.pending is not None and image.pending.base_image_id is not None:
        image = images.get(image.pending.base_image_id)
        if image is None:
            return True
    return False


def _judge_names(host: YardHost, ledger: Ledger, told: Counts) -> None:
    """Require that no image exists that nobody has requested, or whose removal was answered."""
    known = {(kept.place, kept.image_id) for kept in ledger.all()}
    for place in host.places:
        for image in host("listImages", repositoryId=place)["images"]:
            if (place, image["imageId"]) not in known:
                told.serious.append(
                    f"image {image['imageId']} in {place} was refused or removed, and is there"
                )


def _listed(host: YardHost) -> list[str]:
    """What check still lists, except for fixes that only name a foreign file."""
    return [
        f"still listed in {place}: {fix.description} ({fix.waits_for})"
        for place in host.places
        for fix in host.fixes(place)
        if FOREIGN not in fix.description
    ]


def _remove_all(host: YardHost, rng: random.Random, told: Counts) -> None:
    for place in host.places:
        for image in host("listImages", repositoryId=place)["images"]:
            with told.refusals("removeImage"):
                asked = {"repositoryId": place, "imageId": image["imageId"]}
                host("removeImage", **asked, options={"AutoFix": False})
    told.fixes += host.fix_all(list(host.places), rng)


def _left(host: YardHost, place: str) -> list[str]:
    """What is left although there is no image."""
    repo = host.repo(place)
    state, storage = repo.state(), repo.storage
    left = [*state.images, *state.volumes, *state.attachments]
    left += [str(item.name) for item in storage.list_volumes()]
    left += [str(name) for name in storage.list_leftovers()]
    left += [str(image_id) for image_id in storage.progress_image_ids()]
    inside = [path for path in host.places[place].rglob("*") if path.is_file()]
    ours = ("volumes", "progress", "temporary")
    left += [
        str(path)
        for path in inside
        if not path.name.startswith(FOREIGN) and (path.parent.name in ours or path.name.startswith("tmp."))
    ]
    return [f"{thing} in {place}" for thing in dict.fromkeys(left)]
