"""What other programs have put into a localfs repository's directories."""

from __future__ import annotations

import os

from diskyard.host import Files
from diskyard.host.temporary import temporary_owner
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import Foreign
from diskyard.storage.localfs import layout


def list_foreign(files: Files, root: str) -> list[Foreign]:
    """Names in the root and among the volumes that are not Diskyard's, sorted.

    Programs that know only a volume's path put their own files beside it. ``virsh snapshot-create-as`` does
    so with a guest's newest overlay.
    """
    own = {*layout.FOLDERS, layout.LOCKS, layout.RESERVE, layout.MADE_WITH_EXT}
    own |= {os.path.basename(path) for path in layout.record_paths(root)}

    def in_root(name: str) -> str | None:
        return None if name in own or temporary_owner(name) else name

    def among_volumes(name: str) -> str | None:
        return None if temporary_owner(name) else name

    found = []
    for folder, wanted in (("", in_root), (layout.VOLUMES, among_volumes)):
        for item in files.list(os.path.join(root, folder), wanted):
            if folder and item.is_file and VolumeName.parse(item.name) is not None:
                continue
            name = os.path.join(folder, item.name)
            path = os.path.join(root, name) if item.is_file else None
            found.append(Foreign(name, item.allocated_bytes, path))
    return sorted(found, key=lambda foreign: foreign.name)
