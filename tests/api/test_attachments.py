"""prepareImage and teardownImage: who may use what, in what form, and what waits for them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from diskyard import MiB, errors
from tests.api.helpers import (
    COMMIT_ONLY,
    SIZE,
    Rig,
    code_of,
    fixes,
    graph,
    intercept,
    picture,
    python,
    qemu_io,
    run,
    run_fix,
    same_bytes,
    settle,
    wait_until,
)

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
DOMAIN = """<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disk}</devices></domain>"""


def test_one_writer_of_a_disk(rig: Rig) -> None:
    """Another owner, host or mode is refused with host and owner; the same owner gets the same."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    first = yard.prepare_image("a", disk, options={"owner": "vm1"})
    assert (first.mode, first.owner, first.host_id) == ("read_write", "vm1", "one")
    assert yard.prepare_image("a", disk, options={"owner": "vm1"}) == first
    for host, options in (
        (yard, {"owner": "vm2"}),
        (other, {"owner": "vm1"}),
        (other, {"owner": "vm3", "read_only": True}),
        (yard, {"owner": "vm1", "read_only": True}),
    ):
        with pytest.raises(errors.ImageInUse) as caught:
            host.prepare_image("a", disk, options=options)
        assert (caught.value.details["hostID"], caught.value.details["owner"]) == ("one", "vm1")
    (seen,) = other.get_image_info("a", disk).attachments
    assert (seen.host_id, seen.owner, seen.mode) == ("one", "vm1", "read_write")
    yard.teardown_image("a", disk, options={"owner": "vm1"})
    yard.teardown_image("a", disk, options={"owner": "vm1"})
    assert other.prepare_image("a", disk, options={"owner": "vm1"}).host_id == "two"
    other.teardown_image("a", disk, options={"owner": "vm1"})


def test_many_readers(rig: Rig) -> None:
    """Any number read a Snapshot, or a disk that nobody writes."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    snapshot = yard.create_snapshot("a", disk)
    for image in (snapshot, disk):
        for host in (yard, other):
            for owner in ("r1", "r2"):
                attached = host.prepare_image("a", image, options={"read_only": True, "owner": owner})
                assert attached.mode == "read_only"
                same_bytes(rig.convert(graph(attached)), picture(SIZE, ONE))
        assert len(yard.get_image_info("a", image).attachments) == 4
    assert yard.prepare_image("a", snapshot).mode == "read_only"
    assert code_of(lambda: yard.prepare_image("a", disk)) == "ImageInUse"


@pytest.mark.parametrize("read_only", [False, True])
def test_verbs_that_respect_an_attachment(rig: Rig, read_only: bool) -> None:
    """While a disk is attached every verb that would change or freeze it is refused, anywhere."""
    yard, other = rig.yard, rig.host("two")
    source = rig.disk("a", TWO)
    disk = rig.disk("a", ONE)
    base = yard.create_snapshot("a", disk)
    yard.prepare_image("a", disk, options={"owner": "vm", "read_only": read_only})
    before = rig.repository("a").state().version
    for host in (yard, other):
        for verb in (
            lambda host=host: host.create_snapshot("a", disk),
            lambda host=host: host.copy_image("b", disk),
            lambda host=host: host.copy_image("a", source, disk),
            lambda host=host: host.remove_image("a", disk),
            lambda host=host: host.extend_virtual_disk("a", disk, 2 * SIZE),
            lambda host=host: host.revert_virtual_disk("a", disk, base),
            lambda host=host: host.export_image("a", disk, str(rig.folder / "x.raw"), "raw"),
        ):
            assert code_of(verb) == "ImageInUse"
    assert rig.files("b") == []
    assert len(rig.files("a")) == 3
    state = rig.repository("a").state()
    assert all(image.held_for == () for image in state.images.values())
    yard.set_user_data("a", disk, {"still": "possible"})
    yard.set_strategy("a", disk, "space")
    assert before <= state.version
    yard.teardown_image("a", disk, options={"owner": "vm"})
    yard.create_snapshot("a", disk)


def test_a_snapshot_in_use_is_not_removed(rig: Rig) -> None:
    """Also not while only read."""
    snapshot = rig.yard.create_snapshot("a", rig.disk("a", ONE))
    rig.yard.prepare_image("a", snapshot)
    assert code_of(lambda: rig.yard.remove_image("a", snapshot)) == "ImageInUse"
    assert code_of(lambda: rig.yard.remove_storage_repository("a")) == "NotEmpty"


def test_fixes_wait_for_an_attachment(rig: Rig) -> None:
    """Merge and optimize are listed as waiting, refuse to run, and run afterwards."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    middle = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    yard.set_strategy("a", disk, "performance")
    attached = yard.prepare_image("a", disk, options={"owner": "vm"})
    yard.remove_image("a", middle, options=COMMIT_ONLY)
    for kind in ("merge", "optimize"):
        (fix,) = fixes(yard, "a", kind)
        assert not fix.runnable
        assert "vm" in (fix.waits_for or "")
        with pytest.raises(errors.ImageInUse, match="vm"):
            run_fix(rig.host("two"), "a", fix)
    qemu_io(attached, f"write -P 5 {3 * MiB} 65536")
    yard.teardown_image("a", disk, options={"owner": "vm"})
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO, (5, 3 * MiB, 65536)))
    assert len(rig.files("a")) == 1


def test_clean_spares_what_is_attached(rig: Rig) -> None:
    """A reader of a Snapshot keeps every volume it was given, whatever is removed meanwhile."""
    yard, other = rig.yard, rig.host("two")
    disk = rig.disk("a", ONE)
    first = yard.create_snapshot("a", disk)
    rig.write("a", disk, TWO)
    second = yard.create_snapshot("a", disk)
    attached = yard.prepare_image("a", second)
    other.remove_image("a", first)
    other.remove_image("a", disk)
    other.wait_for_tasks(30)
    settle(other, "a")
    same_bytes(rig.convert(graph(attached)), picture(SIZE, ONE, TWO))
    yard.teardown_image("a", second)
    settle(other, "a")
    rig.expect("a", second, picture(SIZE, ONE, TWO))
    rig.clean_slate("a")


def check_xml(text: str, depth: int, read_only: bool, folder: Path) -> None:
    """The disk passes libvirt's schema, and its chain is spelled out to an empty end."""
    file = folder / "domain.xml"
    file.write_text(DOMAIN.format(disk=text))
    run("xmllint", "--noout", "--relaxng", SCHEMA, str(file))
    disk = ET.fromstring(text)  # noqa: S314 — our own
    assert (disk.find("readonly") is not None) == read_only
    formats, node = [], disk.find("driver")
    assert node is not None
    formats.append(node.get("type"))
    store = disk.find("backingStore")
    while store is not None and len(store):
        found = store.find("format")
        assert found is not None
        source = store.find("source")
        assert source is not None
        server = source.find("host")
        assert os.path.exists((source.get("file") if server is None else server.get("socket")) or "")
        formats.append(found.get("type"))
        store = store.find("backingStore")
    assert store is not None, "the chain does not end with an empty <backingStore/>"
    assert formats == ["qcow2"] * (depth - 1) + ["raw"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_libvirt_xml(rig: Rig, depth: int) -> None:
    """Libvirt's own schema takes the disk, and no tool follows a header's name."""
    disk = rig.raw_disk("a", ONE)
    for number in range(depth - 1):
        rig.yard.create_snapshot("a", disk)
        rig.write("a", disk, (number + 2, MiB, MiB))
    attached = rig.yard.prepare_image("a", disk)
    check_xml(attached.libvirt_xml, depth, False, rig.folder)
    rig.yard.teardown_image("a", disk)
    attached = rig.yard.prepare_image("a", disk, options={"read_only": True})
    check_xml(attached.libvirt_xml, depth, True, rig.folder)
    rig.yard.teardown_image("a", disk)


def test_libvirt_xml_of_strange_places(tmp_path: Path) -> None:
    """A path with the characters that XML and shells are afraid of is still one path."""
    folder = tmp_path / "a <b> & \"c\" 'd' ü"
    folder.mkdir()
    rig = Rig(tmp_path, folder)
    disk = rig.disk("a", ONE)
    attached = rig.yard.prepare_image("a", disk)
    check_xml(attached.libvirt_xml, 1, False, tmp_path)
    assert attached.path == str(rig.volume_path("a", disk))
    same_bytes(rig.convert(graph(attached)), picture(SIZE, ONE))
    rig.close()


def test_path_and_format_where_one_file_is_enough(rig: Rig) -> None:
    """A single volume can be opened by name; a chain cannot, and says so."""
    disk = rig.raw_disk("a", ONE)
    attached = rig.yard.prepare_image("a", disk)
    assert attached.format == "raw"
    assert attached.path is not None
    same_bytes(rig.convert(attached.path, "raw"), picture(SIZE, ONE))
    rig.yard.teardown_image("a", disk)
    rig.yard.create_snapshot("a", disk)
    attached = rig.yard.prepare_image("a", disk)
    assert (attached.path, attached.format) == (None, None)
    volume = str(rig.volume_path("a", disk))
    info = json.loads(run("qemu-img", "info", "--output=json", "-U", "-f", "qcow2", volume))
    assert info["backing-filename"].startswith("diskyard:")
    failed = run("qemu-img", "convert", "-U", "-O", "raw", volume, str(rig.folder / "x"), check=False)
    assert failed == ""
    assert not (rig.folder / "x").exists()


def test_attachments_survive_the_process(rig: Rig) -> None:
    """A process of the host that made one may end; another one tears it down."""
    disk = rig.disk("a", ONE)
    program = f'yard.prepare_image("a", {disk!r}, options={{"owner": "vm"}}); import os; os._exit(9)'
    process = python(rig, "one", program)
    process.communicate(timeout=30)
    assert process.returncode == 9
    rig.expect_in_use("a", disk)
    assert fixes(rig.host("two"), "a") == []
    rig.yard.teardown_image("a", disk, options={"owner": "vm"})
    rig.write("a", disk, TWO)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))


def test_teardown_of_another_hosts_attachment(rig: Rig) -> None:
    """It needs force, from who knows that the guest has ended."""
    disk = rig.disk("a", ONE)
    rig.yard.prepare_image("a", disk, options={"owner": "vm"})
    other = rig.host("two")
    other.teardown_image("a", disk, options={"owner": "vm"})  # that host has none
    words = {"owner": "vm", "host_id": "one"}
    with pytest.raises(errors.ImageInUse):
        other.teardown_image("a", disk, options=words)
    rig.expect_in_use("a", disk)
    other.teardown_image("a", disk, options={**words, "force": True})
    rig.write("a", disk, TWO, yard=other)


def test_an_attachment_of_an_earlier_boot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has restarted since cannot be using it: clean takes it away."""
    yard = rig.yard
    disk = rig.disk("a", ONE)
    yard.prepare_image("a", disk, options={"owner": "vm"})
    rebooted = replace(yard.service.host.identity, boot_id="0" * 32)
    monkeypatch.setattr("diskyard.host.this_host", lambda: rebooted)
    after = rig.host("one", connect=())
    (fix,) = fixes(after, "a")
    assert fix.type == "clean"
    assert run_fix(after, "a", fix).changed
    assert after.get_image_info("a", disk).attachments == ()
    rig.expect("a", disk, picture(SIZE, ONE))


def test_a_state_folder_with_a_long_name(tmp_path: Path) -> None:
    """Where a socket cannot have its name the error says what to do, and nothing is left running."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    rig = Rig(folder)
    disk = rig.disk("a", ONE)
    with pytest.raises(errors.Unsupported) as caught:
        rig.yard.prepare_image("a", disk, options={"serve": "nbd"})
    assert "DISKYARD_STATE_DIR" in caught.value.advice
    assert rig.yard.get_image_info("a", disk).attachments == ()
    rig.close()


def test_serve_nbd(short_rig: Rig) -> None:
    """A disk is read and written over its socket, whose name it keeps when served again."""
    rig, yard = short_rig, short_rig.yard
    disk = rig.disk("a", ONE)
    yard.create_snapshot("a", disk)
    first = yard.prepare_image("a", disk, options={"serve": "nbd"})
    assert first.nbd_uri is not None
    assert yard.prepare_image("a", disk, options={"serve": "nbd"}).nbd_uri == first.nbd_uri
    run("qemu-io", "-f", "raw", "-c", f"write -P 2 {MiB} {MiB}", "-c", "flush", first.nbd_uri)
    same_bytes(rig.convert(first.nbd_uri, "raw"), picture(SIZE, ONE, TWO))
    yard.teardown_image("a", disk)
    assert not Path(first.nbd_uri.partition("socket=")[2]).exists()
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
    again = yard.prepare_image("a", disk, options={"serve": "nbd"})
    assert again.nbd_uri == first.nbd_uri
    yard.teardown_image("a", disk)


def test_an_image_has_so_many_connections(short_rig: Rig) -> None:
    """Who comes later waits until another leaves; the server's descriptors are bounded so."""
    rig, yard = short_rig, short_rig.yard
    disk = rig.disk("a", ONE)
    uri = yard.prepare_image("a", disk, options={"serve": "nbd"}).nbd_uri or ""
    path = uri.partition("socket=")[2]
    with contextlib.ExitStack() as repository:
        clients = [repository.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(17)]
        for client in clients[:16]:
            client.connect(path)
            assert client.recv(8) == b"NBDMAGIC"
        clients[16].connect(path)
        assert select.select([clients[16]], [], [], 0.2)[0] == []  # greeted too early it would be by then
        clients[0].close()
        assert clients[16].recv(8) == b"NBDMAGIC"
    yard.teardown_image("a", disk)


def test_two_owners_are_served_apart(short_rig: Rig) -> None:
    """The end of one reader's service is not the end of the other's; nobody can write."""
    rig, yard = short_rig, short_rig.yard
    snapshot = yard.create_snapshot("a", rig.disk("a", ONE))
    options: dict[str, Any] = {"serve": "nbd"}
    uris = [
        yard.prepare_image("a", snapshot, options={**options, "owner": owner}).nbd_uri or ""
        for owner in ("r1", "r2")
    ]
    same_bytes(rig.convert(uris[0], "raw"), picture(SIZE, ONE))
    yard.teardown_image("a", snapshot, options={"owner": "r1"})
    same_bytes(rig.convert(uris[1], "raw"), picture(SIZE, ONE))
    failed = run("qemu-io", "-f", "raw", "-c", "write 0 512", uris[1], check=False)
    assert "wrote" not in failed
    same_bytes(rig.read("a", snapshot), picture(SIZE, ONE))
    yard.teardown_image("a", snapshot, options={"owner": "r2"})


def test_closing_ends_the_service(short_rig: Rig) -> None:
    """The attachment stays; the server does not."""
    rig = short_rig
    disk = rig.disk("a", ONE)
    host = rig.host("three")
    attached = host.prepare_image("a", disk, options={"serve": "nbd"})
    path = (attached.nbd_uri or "").partition("socket=")[2]
    host.close()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=r"."):
        client.connect(path)
    rig.expect_in_use("a", disk)


def test_a_server_outlives_the_thread_that_asked_for_it(short_rig: Rig) -> None:
    """A service's threads come and go; an image stays served until it is torn down."""
    rig = short_rig
    disk = rig.disk("a", ONE)
    with ThreadPoolExecutor(1) as other:
        attached = other.submit(rig.yard.prepare_image, "a", disk, options={"serve": "nbd"}).result()
    same_bytes(rig.convert(attached.nbd_uri or "", "raw"), picture(SIZE, ONE))
    with ThreadPoolExecutor(1) as other:
        other.submit(rig.yard.teardown_image, "a", disk).result()
    rig.expect("a", disk, picture(SIZE, ONE))


def test_what_another_process_serves_is_not_torn_down(short_rig: Rig) -> None:
    """Its server could still write: into a Snapshot, say, that is made of the disk afterwards."""
    rig, yard = short_rig, short_rig.yard
    disk = rig.disk("a", ONE)
    program = f"""
attached = yard.prepare_image("a", {disk!r}, options={{"serve": "nbd"}})
print(attached.nbd_uri, flush=True)
input()
"""
    process = python(rig, "one", program)
    assert process.stdout is not None
    uri = process.stdout.readline().strip()
    for options in ({}, {"force": True}, {"host_id": "one"}):
        with pytest.raises(errors.ImageInUse) as caught:
            yard.teardown_image("a", disk, options=options)
        assert "Stop the process" in caught.value.advice
    assert code_of(lambda: yard.prepare_image("a", disk, options={"serve": "nbd"})) == "ImageInUse"
    rig.expect_in_use("a", disk)
    yard.teardown_image("a", disk, options={"owner": "somebody else"})
    run("qemu-io", "-f", "raw", "-c", f"write -P 2 {MiB} {MiB}", "-c", "flush", uri)
    process.kill()
    process.communicate()
    wait_until(lambda: not rig.repository("a").is_locked(f"{disk}/served/one/diskyard"))
    yard.teardown_image("a", disk)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))


def test_serving_loses_against_a_teardown(short_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attachment that another process ended before it was served is not served."""
    rig, yard = short_rig, short_rig.yard
    disk, other = rig.disk("a", ONE), rig.host("one")
    intercept(monkeypatch, yard.service.servers, "serve", before=lambda: other.teardown_image("a", disk))
    assert code_of(lambda: yard.prepare_image("a", disk, options={"serve": "nbd"})) == "ImageInUse"
    rig.write("a", disk, TWO)
    rig.expect("a", disk, picture(SIZE, ONE, TWO))
