"""Storage whose volumes are no files of this host: where it must not be silent, and all that moves bytes.

The tests that are taken over are those of other modules, unchanged; only the repositories are of another
format. All of the suite runs on it by ``DISKYARD_TEST_FORMAT=pathless-1.0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from diskyard import KiB, MiB
from diskyard.testing import pathless
from diskyard.testing.effort import Effort
from tests.api import (
    test_beyond_the_record,
    test_copy,
    test_damage,
    test_fixes,
    test_flow,
    test_merging,
    test_removing,
    test_resume,
    test_sizes,
    test_strategy,
)
from tests.api.helpers import SIZE, Rig, code_of, graph, picture, run, same_bytes

ALWAYS: tuple[ModuleType, ...] = (test_damage, test_flow, test_merging)
IF_THOROUGH: tuple[ModuleType, ...] = (
    test_beyond_the_record,
    test_copy,
    test_fixes,
    test_removing,
    test_resume,
    test_sizes,
    test_strategy,
)
#: What is about files, and why it cannot be on such storage.
ABOUT_FILES = {
    "test_a_disk_grown_by_its_guest_keeps_what_the_guest_wrote": "NBD cannot make an export longer",
    "test_path_and_format_where_one_file_is_enough": "there is no path",
}
chain = test_beyond_the_record.chain
cut_extend, log_within_extend = test_sizes.cut_extend, test_sizes.log_within_extend


def _taken_over() -> Iterator[tuple[str, object]]:
    for module in (*ALWAYS, *(IF_THOROUGH if Effort.of_environment().thorough else ())):
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test) and name not in ABOUT_FILES:
                yield name, test


globals().update(_taken_over())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, format=pathless.FORMAT)
    yield made
    made.close()


def poke(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)


def disk_on_snapshot(rig: Rig) -> str:
    """A disk with a qcow2 volume on a raw one."""
    disk = rig.disk("a", (1, 0, MiB))
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (2, MiB, 64 * KiB))
    return disk


def test_a_header_that_leads_elsewhere_is_not_opened(rig: Rig) -> None:
    """It says that its data are in another file (docs/interop/qcow2.txt of QEMU, incompatible features)."""
    disk = disk_on_snapshot(rig)
    poke(rig.volume_path("a", disk), 72, (1 << 2).to_bytes(8, "big"))
    assert code_of(lambda: rig.yard.prepare_image("a", disk)) == "ImageBroken"
    assert rig.yard.get_image_status("a", disk).status == "broken"
    assert code_of(lambda: rig.yard.export_image("a", disk, str(rig.folder / "out"), "raw")) == "ImageBroken"


def test_a_volume_that_cannot_be_read_is_not_whole(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is gone: nothing is known of it, and nothing is told as if it were."""
    disk = disk_on_snapshot(rig)
    monkeypatch.setattr(rig.repository("a").storage, "_socket", str(rig.folder / "nobody"))
    assert code_of(lambda: rig.yard.prepare_image("a", disk)) == "ImageBroken"


def test_the_size_is_the_disks_and_not_its_containers(rig: Rig) -> None:
    """A volume whose header says more than its record is longer; how long its container is says nothing."""
    disk = disk_on_snapshot(rig)
    repository = rig.repository("a")
    volume = repository.state().volumes[repository.state().images[disk].volume_id or ""]
    assert repository.longer_bytes(volume, repository.stored(volume)) is None
    poke(rig.volume_path("a", disk), 24, (2 * SIZE).to_bytes(8, "big"))
    assert repository.longer_bytes(volume, repository.stored(volume)) == 2 * SIZE


def test_what_is_unwritten_is_found_to_be(rig: Rig) -> None:
    """So that taking a Snapshot twice does not make a chain longer."""
    disk = rig.disk("a", (1, 0, MiB))
    rig.yard.create_snapshot("a", disk)
    repository = rig.repository("a")
    state = repository.state()
    assert repository.is_unwritten(state.volumes[state.images[disk].volume_id or ""])
    rig.write("a", disk, (2, MiB, 64 * KiB))
    assert not repository.is_unwritten(state.volumes[state.images[disk].volume_id or ""])


def test_what_a_guest_is_told(rig: Rig) -> None:
    """Of each layer its server and export, in QEMU's words and in libvirt's; nowhere the name of a file."""
    disk = disk_on_snapshot(rig)
    attached = rig.yard.prepare_image("a", disk)
    assert (attached.path, attached.format) == (None, None)
    same_bytes(rig.convert(graph(attached)), picture(SIZE, (1, 0, MiB), (2, MiB, 64 * KiB)))
    # Diskyard has just written this text itself: no parser for hostile XML is needed.
    sources = list(ET.fromstring(attached.libvirt_xml).iter("source"))  # noqa: S314 - our own
    assert len(sources) == 2
    for source in sources:
        assert (source.get("protocol"), source.get("file")) == ("nbd", None)
        assert str(source.get("name")).startswith(rig.place("a")["path"])
        (server,) = source
        assert server.attrib == {"transport": "unix", "socket": rig.place("a")["socket"]}
    rig.yard.teardown_image("a", disk)


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_what_can_be_imported(rig: Rig, format: str) -> None:
    """What must be copied privately first has no place there: that is said before anything is committed."""
    file = rig.folder / f"file.{format}"
    run("qemu-img", "create", "-q", "-f", format, str(file), str(SIZE))
    if format == "raw":
        poke(file, MiB, b"\2" * MiB)
        image = rig.yard.import_image("a", str(file), format)
        rig.wait()
        rig.expect("a", image, picture(SIZE, (2, MiB, MiB)))
    else:
        assert code_of(lambda: rig.yard.import_image("a", str(file), format)) == "Unsupported"
        assert list(rig.repository("a").state().images) == []
    rig.clean_slate("a")
