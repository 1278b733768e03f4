"""Every kind of sync there is: where its absence is seen, or why it cannot be.

A kind is who syncs, with its callers (:mod:`diskyard.testing.recording`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Removal:
    """Syncs that are left out together, and where that must be seen.

    :param kinds: regular expressions of kinds of sync.
    """

    scenario: str
    kinds: tuple[str, ...]


NEEDED = [
    # The log: an entry's bytes before its name, its name before the answer, and before others act on it.
    Removal("create disk", (r"write_temporary < publish < put < _put",)),
    Removal("create disk", (r"folder: _publish_written < publish < put < _put",)),
    Removal("remove on a full storage", (r"_write < _filled < ",)),
    Removal("clean after an unknown outcome", (r"folder: sync_log < _refresh",)),
    # Checkpoints. Of the syncs of their folder either one is enough: when a new one is put, and
    # when an old one is deleted. Without both, entries are trimmed that no durable checkpoint has.
    Removal("fold again and again", (r"write_temporary < publish < put < fold",)),
    Removal(
        "fold again and again",
        (r"folder: _publish_written < publish < put < fold", r"folder: delete < trim < fold_if_due"),
    ),
    # Volumes: their bytes and their names before the entry that says so.
    Removal("create disk", (r"_new_file < create_volume < make_empty < make",)),
    Removal("create disk", (r"folder: create_volume < make_empty < make",)),
    Removal("create snapshot", (r"_new_file < create_volume < make_empty < _switch_once",)),
    Removal("create snapshot", (r"folder: create_volume < make_empty < _switch_once",)),
    Removal(
        "copy disk onto a disk as base",
        (r"_new_file < create_volume < make_empty < _switch_once",),
    ),
    Removal(
        "copy disk onto a disk as base",
        (r"folder: create_volume < make_empty < _switch_once",),
    ),
    Removal("mend with checkpoints", (r"_new_file < create_volume < make_empty < _take_over",)),
    Removal("mend with checkpoints", (r"folder: create_volume < make_empty < _take_over",)),
    Removal("optimize for performance", (r"folder: create_volume < make_empty < _build",)),
    Removal("clean", (r"folder: delete_volume < clean_volume",)),
    Removal("copy disk by a clone", (r"_clone < clone_volume < _make_clone",)),
    Removal("copy disk by a clone", (r"folder: clone_volume < _make_clone",)),
    Removal("create disk by a clone", (r"grow_volume < _make_clone",)),
    Removal("mend by a clone", (r"clone_into < clone_layer < _share",)),
    # What is moved. The last flush, which may be QEMU's, and the sync of the file after it each make
    # the same durable: the first tells what QEMU could not write, the second what the system could
    # not. Both together:
    Removal("mend a copy", (r"flush < _flush < _serve", r"sync_layer < copy_view")),
    Removal(
        "mend a difference",
        (r"QEMU since nbd flush < flush < _flush < _serve", r"sync_layer < copy_view"),
    ),
    Removal("mend with checkpoints", (r"flush < _flush < _serve",)),
    Removal(
        "merge down into raw",
        (r"QEMU since qmp block-commit < run_job < _commit_down", r"sync_layer < _commit_down"),
    ),
    Removal(
        "merge down into qcow2",
        (r"QEMU since qmp block-commit < run_job < _commit_down", r"sync_layer < _commit_down"),
    ),
    # QEMU 7.2 syncs at the flush, QEMU 10 already when its job is dismissed.
    Removal(
        "merge up",
        (
            r"QEMU since (nbd flush < flush|qmp job-dismiss < _follow_job < run_job) < _stream_up",
            r"sync_layer < _stream_up",
        ),
    ),
    # In a merge, the zeros that the dependent holds itself before the parent is made longer.
    Removal(
        "merge down over a longer base",
        (
            r"QEMU since nbd flush < flush < _store_zeros < _keep_end",
            r"sync_layer < _keep_end",
        ),
    ),
    # Lengths: a volume is as long as its record says before that says so.
    Removal("extend lone disk", (r"sync_layer < grow < _extend",)),
    Removal("tear down a disk that grew", (r"sync_layer < _sync < growth_of",)),
    Removal(
        "take back an extend",
        (
            r"QEMU since qmp block_resize < set_size < grow < _cut_back",
            r"sync_layer < grow < _cut_back",
        ),
    ),
    Removal(
        "extend over a longer base",
        (
            r"QEMU since qmp block_resize < set_size < grow < _extend",
            r"QEMU since nbd flush < flush < set_size < grow < _extend",
            r"sync_layer < grow < _extend",
        ),
    ),
    Removal("export to the disk", (r"flush < _flush < _serve", r"sync_layer < copy_view")),
    Removal("export to the disk", (r"folder: _write_in < _write_file",)),
    # Repositories.
    Removal("create repository", (r"folder: (sync_folder < _make_root|_make_folders) < _create",)),
    Removal("create repository", (r"write_temporary < publish < _seed < _create",)),
    Removal("create repository", (r"folder: _publish_written < publish < _seed < _create",)),
    Removal("remove repository", (r"folder: remove < remove_storage_repository",)),
    Removal("remove repository", (r"folder: _remove_rest < remove",)),
]
NOT_SEEN = {
    r"(write_temporary|folder:) .*replace < put_progress": (
        "Progress may be lost: its checksum shows what is torn, and the work then begins anew. Synced, it "
        "saves that work; what it must not outrun is synced before it (flush < _flush)."
    ),
    r"(write_temporary < replace|folder: replace) < rewrite": (
        "Only a bad copy is renamed over, and the other copy, whole, has long been durable. Synced, the "
        "object is there twice again from then on; without it a second damage would be needed to lose it."
    ),
    r"(write_temporary < replace|folder: replace) < _rewrite_record": "The same, of the repository's record.",
    r"_new_file < create_volume < make_empty < (_build|_restore)": (
        "The file is filled at once and synced whole before its seal (copy_view). It is one and the same "
        "step of the code as for volumes that stay as they were made, where it is needed."
    ),
    r"folder: create_volume < make_empty < _restore": (
        "The same step of the code again. What is lost here is restored once more from the same source."
    ),
    r"folder: delete_volume < clean_garbage": "What comes back is garbage still, and listed again.",
    r"folder: empty_folders < _remove_rest": (
        "It keeps the order in which a folder's names go, which this disk, as a journal does, keeps anyway."
    ),
    r"folder: (fill|_make_folder < fill) < ": (
        "The reserve holds nothing, and is made anew where it lacks. Synced, its blocks are there for the "
        "entry that needs them."
    ),
    r"_write < _free": "A file of the reserve that is about to be removed: cut to nothing, it is of no use.",
    r"_make_folders < _create": "Of the file of locks, which holds nothing; names are the folder's.",
    r"folder: sync_folder < require_able < (_create|connect)": (
        "It only shows whether the file system can: nothing was done that it would make durable."
    ),
    r"grow_volume < _reserve": (
        "Reserved blocks hold what they held: without them a guest may find the storage full, which a disk "
        "in memory cannot show. No byte depends on it."
    ),
    r"QEMU since qmp block_resize < set_size < _commit_down": (
        "Until the seal what is beyond the parent's record is read from the dependent, which holds all "
        "of it; before the seal the whole volume is synced."
    ),
    r"sync_layer < _sync < _cut_back": (
        "It makes durable what an earlier settling cut that was itself interrupted: two interruptions, which "
        "one recorded run has not."
    ),
    r"QEMU since nbd flush < flush < _store_zeros < _stream_up": (
        "Nothing is published between it and the sync of the whole volume. It is there for the errors that "
        "QEMU would keep to itself."
    ),
    r"QEMU since qmp block-export-add < export_nbd < _open_target < copy < copy_view": (
        "QEMU's own order of its tables on a volume that is building: nothing reads it before its flush."
    ),
}


def of_kinds(kinds: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those that a pattern names."""
    return [kind for kind in kinds if any(re.match(pattern, kind) for pattern in patterns)]


def known(kinds: Iterable[str]) -> list[str]:
    """Those that are in one of the two tables."""
    return of_kinds(kinds, [*NOT_SEEN, *(pattern for removal in NEEDED for pattern in removal.kinds)])
