"""The guards against losing data, each with the tests that must fail once it is gone."""

from __future__ import annotations

from dataclasses import dataclass

BASES = "tests/api/test_bases.py"
CONTRACT = "tests/contract/test_localfs.py::TestLocalfs"
INTERLEAVINGS = "tests/api/test_interleavings.py"
FIRST_COPY = "tests/unit/log/test_first_copy_lost.py"
GROUPS = "tests/unit/commit/test_groups.py"
STALE = "tests/unit/planner/test_stale_plans.py"
MOVED = "tests/api/test_moved_meanwhile.py"
WRITERS = "tests/api/test_live_writers.py"
SWAPS = "tests/swaps"
LINK = "os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)"
REPLACE = "os.replace(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)"


@dataclass(frozen=True)
class Guard:
    """A guard, how it is taken out, and where that is seen.

    :param changes: pairs of the text that goes, which is there once, and what comes in its place.
    :param tests: of them at least one must fail; all of them pass with the guard.
    """

    name: str
    module: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


GUARDS = [
    # -- the log ----------------------------------------------------------------------
    Guard(
        "put if absent",
        "diskyard.host.files",
        ((LINK, REPLACE),),
        (f"{CONTRACT}::test_threads_that_put_one_number",),
    ),
    Guard(
        "put if absent, between hosts in the middle of an operation",
        "diskyard.host.files",
        ((LINK, REPLACE),),
        ("tests/crash/test_every_step.py::test_suspended_at_every_step[create snapshot]",),
    ),
    Guard(
        "the look after publishing",
        "diskyard.log.log",
        (("            if not self._require_stands(entry):\n", "            if False:\n"),),
        ("tests/api/test_log.py::test_a_suspended_writer_that_publishes_after_a_trim",),
    ),
    Guard(
        "a second copy that was there first",
        "diskyard.host.publishing",
        (("                if overruled is not None and overruled():\n", "                if False:\n"),),
        (FIRST_COPY,),
    ),
    Guard(
        "of two copies the second is read",
        "diskyard.log.reading",
        (("        for copy in reversed(copies):\n", "        for copy in copies:\n"),),
        (FIRST_COPY,),
    ),
    Guard(
        "no false news",
        "diskyard.log.reading",
        (("        if not self._still_there(start):\n", "        if False:\n"),),
        ("tests/unit/log/test_trimming.py",),
    ),
    Guard(
        "trimmed past",
        "diskyard.log.checkpoints",
        (("return bool(numbers) and not below", "return False"),),
        ("tests/unit/log/test_trimming.py::test_a_trimmed_entry_that_a_suspended_writer_puts_back",),
    ),
    Guard(
        "the second copy, written",
        "diskyard.host.publishing",
        (("zip(temporaries[1:], paths[1:], strict=True)", "zip((), ())"),),
        (f"{CONTRACT}::test_what_is_put_is_there_in_both_copies",),
    ),
    Guard(
        "the second copy, read",
        "diskyard.log.reading",
        (("        for copy in reversed(copies):\n", "        for copy in copies[:1]:\n"),),
        ("tests/api/test_log.py::test_one_copy_of_a_log_entry_is_enough[removed-0]",),
    ),
    Guard(
        "the twin before the next entry",
        "diskyard.log.log",
        (("                self._complete_replica(state)\n", "                pass\n"),),
        ("tests/unit/log/test_log.py::test_one_copy_is_enough_and_the_next_writer_completes_it",),
    ),
    Guard(
        "read-only while the log is damaged",
        "diskyard.log.log",
        (("            self.require_writable()\n            with", "            with"),),
        ("tests/unit/log/test_log.py",),
    ),
    Guard(
        "durable before acted on",
        "diskyard.log.reading",
        (("                        self._store.sync_log()\n", ""),),
        ("tests/unit/log/test_log.py::test_what_another_wrote_is_made_durable_before_it_is_answered",),
    ),
    # -- groups -----------------------------------------------------------------------
    Guard(
        "one change of a record in an entry",
        "diskyard.repository.commit",
        (("        return self._ids.isdisjoint(ids) and len", "        return len"),),
        (f"{GROUPS}::test_two_changes_of_one_record_are_two_entries",),
    ),
    Guard(
        "one author of a record, read",
        "diskyard.log.entries",
        (("        if len(set(ids)) < len(ids):\n", "        if False:\n"),),
        ("tests/corruption/test_hostile_records.py::test_an_entry_that_can_be_is_read",),
    ),
    Guard(
        "an answer only once what it was planned on stands",
        "diskyard.repository.commit",
        (("            fail_all(group.members, error)\n            return\n", "            fail_all(group.members, error)\n            return group.answer()\n"),),
        (f"{GROUPS}::test_an_unknown_outcome_is_unknown_to_all_in_the_entry_and_to_no_one_else",),
    ),
    Guard(
        "the reserve is for what leads to less",
        "diskyard.repository.commit",
        (("self._frees = min(self._frees, ", "self._frees = max(self._frees, "),),
        (f"{GROUPS}::test_on_a_full_storage_what_leads_to_less_gets_through",),
    ),
    Guard(
        "room for a name in a full folder",
        "diskyard.storage.localfs.reserve",
        (("            if not places:\n", "            if True:\n"),),
        ("tests/faults/test_reserve.py::test_a_directory_without_space_for_a_name_costs_no_file_of_the_reserve",),
    ),
    Guard(
        "who is worked for stays",
        "diskyard.log.turns",
        (("call is None or (self._must_stay and waiter not in self._waiting)", "call is None"),),
        (f"{GROUPS}::test_who_is_worked_for_stays_and_who_waits_leaves",),
    ),
    # -- seals ------------------------------------------------------------------------
    Guard(
        "a seal's own work",
        "diskyard.planner.building",
        (("    if volume is None or volume.building is None or volume.building.work_id != new.work_id:\n", "    if volume is None:\n"),),
        ("tests/unit/planner/test_seals.py",),
    ),
    Guard(
        "an optimize's unchanged data",
        "diskyard.planner.optimize",
        (("        plan.image.data_generation,\n", "        image.data_generation,\n"),),
        (f"{INTERLEAVINGS}::test_a_write_while_an_optimized_volume_is_built",),
    ),
    Guard(
        "a merge's free graph",
        "diskyard.planner.merge",
        (('    if merge_in_the_way(state, plan) is not None:\n        raise Superseded(f"the volumes of image {image_id} are attached")\n', ""),),
        ("tests/unit/planner/test_seals.py",),
    ),
    Guard(
        "consumed_by",
        "diskyard.planner.merge",
        (("    if image.consumed_by is not None:\n        return image.id\n", "    return image.id\n"),),
        ("tests/api/test_merging.py::test_a_snapshot_half_merged_away_and_copied_again",),
    ),
    # -- lengths ----------------------------------------------------------------------
    Guard(
        "a disk that is being extended is given to nobody",
        "diskyard.planner.common",
        (("    if volume is not None and volume.extending is not None:\n", "    if False:\n"),),
        ("tests/unit/planner/test_sizes.py",),
    ),
    Guard(
        "nothing is frozen of a disk that is being extended",
        "diskyard.planner.switch",
        ((" or state.volumes[disk.volume_id].extending is not None:", ":"),),
        ("tests/unit/planner/test_sizes.py",),
    ),
    Guard(
        "a guest's size is taken over when it ends",
        "diskyard.operations.attach",
        (("        if ended and growth is not None:\n", "        if False:\n"),),
        ("tests/api/test_sizes.py::test_a_disk_grown_by_its_guest_keeps_what_the_guest_wrote[raw]",),
    ),
    Guard(
        "a raw volume's bound",
        "diskyard.mover.qemu.graphs",
        (("return {} if end_bytes is None else", "return {} if True else"),),
        ("tests/api/test_beyond_the_record.py::test_what_prepare_gives_out[raw]",),
    ),
    Guard(
        "a qcow2 volume that cannot be bounded",
        "diskyard.repository.repository",
        (("            if not consumed:\n", "            if False:\n"),),
        ("tests/api/test_beyond_the_record.py::test_optimize[qcow2]",),
    ),
    # -- plans that are made of what there was ------------------------------------------
    Guard(
        "only a raw volume without a parent is cloned",
        "diskyard.planner.volume_kind",
        (('    return volume.format == "raw" and volume.parent_image_id is None\n', "    return True\n"),),
        (f"{STALE}::test_only_one_raw_volume_is_cloned",),
    ),
    Guard(
        "a look at one chain does not answer for another",
        "diskyard.model.looked",
        (("        if volume_id not in self._looked_at:\n            raise LookAgain(volume_id)\n", ""),),
        (f"{STALE}::test_what_was_looked_at_says_nothing_of_other_volumes",),
    ),
    Guard(
        "the freeze point that was looked at",
        "diskyard.planner.switch",
        (("    return _held(draft, frozen, new_hold) if (frozen.id, overlay.id) == (frozen_id, overlay_id) else None\n", "    return _held(draft, frozen, new_hold)\n"),),
        (f"{STALE}::test_a_freeze_point_whose_overlay_was_merged_into",),
    ),
    Guard(
        "a clone is of the volume that its base still has",
        "diskyard.planner.building",
        (("            if parent.volume_id != new.clone_of.id:\n", "            if False:\n"),),
        (f"{STALE}::test_a_clone_of_a_base_that_was_restored_meanwhile",),
    ),
    Guard(
        "a base that is sound when it is sealed over",
        "diskyard.planner.building",
        (("        require_sound(state, parent)\n", ""),),
        (f"{STALE}::test_a_base_that_turns_out_to_be_damaged_before_the_seal",),
    ),
    Guard(
        "an empty disk shows no deleted bytes",
        "diskyard.planner.volume_kind",
        ((' or (content == "zeros" and not capabilities.zeroed)', ""),),
        ("tests/api/test_not_zeroed.py::test_a_new_disk_and_its_snapshot",),
    ),
    Guard(
        "a merge of what nobody has written to",
        "diskyard.planner.merge",
        (("    if not _generations(state, dependent) <= plan.generations:\n", "    if False:\n"),),
        (f"{STALE}::test_a_merge_of_volumes_that_have_changed",),
    ),
    Guard(
        "a mend of the image that it was begun for",
        "diskyard.planner.mend",
        (("    if wanted != (was.pending.source, was.pending.base_image_id, was.size_bytes, was.volume_id):\n", "    if False:\n"),),
        (f"{STALE}::test_a_mend_of_what_is_another_image_by_now",),
    ),
    Guard(
        "damage of a volume that stood still",
        "diskyard.planner.mend",
        (("    if draft.state.volumes.get(was.id) == was and users_of(draft.state, was) == users:\n", "    if True:\n"),),
        (f"{STALE}::test_damage_seen_in_a_volume_that_was_written_to_meanwhile",),
    ),
    Guard(
        "volumes that were merged before they were opened",
        "diskyard.repository.settled",
        (("            if now == [_ids(volumes) for _, volumes in found]:\n", "            if True:\n"),),
        (f"{MOVED}::test_a_mend_whose_source_is_merged_when_it_is_opened",),
    ),
    Guard(
        "a whole copy elsewhere",
        "diskyard.repository.connections",
        (("                if why_broken(sight.state, image, sight.missing) is not None:\n", "                if image.pending is not None:\n"),),
        (f"{MOVED}::test_a_disk_from_a_base_that_is_lost_here_and_whole_elsewhere",),
    ),
    Guard(
        "the attachment that is served",
        "diskyard.attachments.serve",
        (("        if (found.host.host_id, found.owner, found.mode, found.volume_ids) == wanted:\n", "        if (found.host.host_id, found.owner, found.mode) == wanted[:3]:\n"),),
        (f"{MOVED}::test_an_attachment_that_was_replaced_before_it_is_served",),
    ),
    # -- holds ------------------------------------------------------------------------
    Guard(
        "a hold keeps an image",
        "diskyard.planner.normalise",
        (("if image.is_strong or image.held_for or state.dependents", "if image.is_strong or state.dependents"),),
        ("tests/api/test_copy.py::test_removing_the_source_at_once", "tests/unit/planner/test_normalise.py"),
    ),
    Guard(
        "a hold keeps an image from merging",
        "diskyard.model.status",
        (("if image.is_strong or image.held_for or image.pending", "if image.is_strong or image.pending"),),
        ("tests/unit/model/test_status.py",),
    ),
    Guard(
        "the hold of a mend that reads elsewhere",
        "diskyard.fixes.mend",
        (("    own = copy_hold(work.repo, image_id, new_uuid())\n", "    yield found, new_uuid()\n    return\n    own = copy_hold(work.repo, image_id, new_uuid())\n"),),
        ("tests/api/test_second_looks.py",),
    ),
    Guard(
        "the look at the hold after a copy",
        "diskyard.operations.freeze",
        (("    if image is not None and hold in image.held_for:\n        return\n", "    if True:\n        return\n"),),
        ("tests/api/test_second_looks.py",),
    ),
    # -- leases -----------------------------------------------------------------------
    Guard(
        "the work lease",
        "diskyard.repository.repository",
        (("                leases.append(self._lock(image_id, wait_s))\n", "                pass\n"),),
        ("tests/api/test_merging.py::test_two_hosts_merge_at_once",),
    ),
    Guard(
        "a lease that children inherit",
        "diskyard.storage.leases",
        (("return () if self._fd is None else (self._fd,)", "return ()"),),
        (f"{CONTRACT}::test_a_child_keeps_it_after_its_parents_death",),
    ),
    Guard(
        "programs that die with their parent",
        "diskyard.host.commands",
        (('            "--pdeathsig",\n            "KILL",\n', ""),),
        ("tests/crash/test_every_step.py::test_killed_at_every_step[merge down into raw]",),
    ),
    Guard(
        "programs whose parent died before they could be told",
        "diskyard.host.commands",
        (('[ "$PPID" = "$1" ] || exit 1\n', ""),),
        ("tests/faults/test_orphans.py",),
    ),
    # -- what may be deleted ----------------------------------------------------------
    Guard(
        "garbage is judged by a log read after it was listed",
        "diskyard.fixes.scan",
        (
            ("    repo.state()\n    engine.asked", "    state = repo.state()\n    engine.asked"),
            ("progress_image_ids()\n    state = repo.state().whole()\n", "progress_image_ids()\n"),
        ),
        ("tests/api/test_second_looks.py",),
    ),
    Guard(
        "a clean looks again",
        "diskyard.fixes.clean",
        (("    if named is not None and volume_name(named) == name:\n        return False\n", ""),),
        ("tests/api/test_second_looks.py",),
    ),
    Guard(
        "only what this history made is garbage",
        "diskyard.planner.find_fixes",
        (("waits_for = None if name in scan.made_here else _whose(scan.state, name)", "waits_for = None"),),
        ("tests/unit/planner/test_find_fixes.py",),
    ),
    Guard(
        "temporary files of living processes",
        "diskyard.storage.localfs.storage",
        (("if owner is not None and provably_gone(owner, self._host.identity):", "if owner is not None:"),),
        (f"{CONTRACT}::test_what_a_dead_process_left",),
    ),
    # -- taking work up again -----------------------------------------------------------
    Guard(
        "a checkpoint of the same work and source",
        "diskyard.fixes.mend",
        (("    return progress.durable_bytes if noted == wanted else None", "    return progress.durable_bytes"),),
        ("tests/api/test_resume.py::test_progress_that_is_damaged_is_not_believed",),
    ),
    Guard(
        "a volume that was made half is made again",
        "diskyard.fixes.mend",
        (("    if start_bytes is None:\n", "    if start_bytes is None and not exists:\n"),),
        ("tests/api/test_resume.py::test_a_volume_that_was_made_without_a_checkpoint",),
    ),
    # -- names that somebody swaps -----------------------------------------------------
    Guard(
        "programs are told descriptors",
        "diskyard.mover.opening",
        (('    return {**layer.protocol, "filename": f"/dev/fd/{file_of(layer)}"}\n', "    return layer.protocol\n"),),
        (f"{SWAPS}/test_swaps.py::test_nothing_outside_is_read_or_written[merge down into raw]",),
    ),
    Guard(
        "a header is read from what is opened",
        "diskyard.repository.repository",
        (("        flaw = self.flaw(volume, stored, container)\n", "        flaw = self.flaw(volume, stored)\n"),),
        (f"{SWAPS}/test_contents.py",),
    ),
    Guard(
        "a header is read where there is no path",
        "diskyard.repository.volume_bytes",
        (
            (
                '        if volume.format == "raw":\n            return None\n        read_more',
                "        if volume.format == \"raw\" or self.storage.locate_volume(volume_name(volume)).path is None:\n            return None\n        read_more",
            ),
        ),
        ("tests/api/test_pathless.py::test_a_header_that_leads_elsewhere_is_not_opened",),
    ),
    Guard(
        "what a raw volume gains is made zeros",
        "diskyard.mover.qemu.grow",
        (("        if size_bytes > top.size_bytes and not top.gains_zeros:\n", "        if False:\n"),),
        ("tests/api/test_rounded.py::test_what_a_disk_gains_is_zeros",),
    ),
    Guard(
        "a guest that writes sees no more than its disk",
        "diskyard.mover.interface",
        (("        return self.bound_bytes if self.bounds_writers or not writable else None\n", "        return None if writable else self.bound_bytes\n"),),
        ("tests/api/test_rounded.py::test_a_guest_sees_no_more_than_its_disk",),
    ),
    Guard(
        "an extend says until when it fills",
        "diskyard.operations.sizes",
        (("    _forget_filling(repo, image_id)\n    with others_may_win", "    with others_may_win"),),
        ("tests/api/test_rounded.py::test_what_was_written_since_an_extend_is_kept",),
    ),
    Guard(
        "a file of one name",
        "diskyard.host.names",
        (("    if links > 1:\n", "    if False:\n"),),
        (f"{SWAPS}/test_hard_links.py",),
    ),
    Guard(
        "no link stands for a folder",
        "diskyard.host.names",
        (("            flags |= os.O_NOFOLLOW\n", "            pass\n"),),
        (f"{SWAPS}/test_folders.py::test_nothing_outside_is_made_or_removed[remove-volumes]",),
    ),
    # -- imports ----------------------------------------------------------------------
    Guard(
        "the time of an import is that of its file",
        "diskyard.mover.formats.foreign_headers",
        (("        sum(held) * vhdx.block_bytes < file_size_bytes + vhdx.block_bytes,\n", "        True,\n"),),
        ("tests/unit/mover/test_vhdx.py",),
    ),
    Guard(
        "what is not about a block",
        "diskyard.mover.formats.foreign_headers",
        (("    del held[vhdx.blocks_of_a_chunk :: vhdx.blocks_of_a_chunk + 1]\n", ""),),
        ("tests/unit/mover/test_vhdx.py",),
    ),
    # -- writers beside the log --------------------------------------------------------
    Guard(
        "a guest that nobody prepared, as its disk is frozen",
        "diskyard.operations.freeze",
        (("    repo.make_empty(new.volume)\n    require_no_stranger(repo, begun.state, asked.disk_id)\n", "    repo.make_empty(new.volume)\n"),),
        (f"{WRITERS}::test_a_guest_that_starts_while_a_disk_is_frozen",),
    ),
    Guard(
        "a guest that nobody prepared, in a merge",
        "diskyard.fixes.merge",
        (("                _require_no_stranger(work, plan)\n", ""), ("    _require_no_stranger(work, plan)\n    work.repo.commit(lambda draft: planner.seal_merge_down", "    work.repo.commit(lambda draft: planner.seal_merge_down")),
        (f"{WRITERS}::test_fixes_wait_for_a_guest_that_nobody_prepared",),
    ),
    Guard(
        "a guest that writes yet, as its attachment ends",
        "diskyard.operations.attach",
        (("        if not options.force:\n", "        if False:\n"),),
        (f"{WRITERS}::test_teardown_under_a_live_writer",),
    ),
    Guard(
        "a guest that writes to what is deleted",
        "diskyard.fixes.clean",
        (("        _require_unwritten(repo, volume_name(doomed))\n", ""),),
        (f"{WRITERS}::test_a_volume_that_a_guest_writes_is_not_deleted[_doomed]",),
    ),
    Guard(
        "work that a stranger keeps from beginning explains nobody",
        "diskyard.operations.writers",
        (("    return repo.is_locked(_writing_lease(volume))\n", "    return bool(repo.locked_among([*state.images_on(volume.id), *(f\"{key}/size\" for key in state.images_on(volume.id))]))\n"),),
        (f"{WRITERS}::test_work_that_a_guest_refuses_does_not_explain_it[prepareImage]",),
    ),
    Guard(
        "what was written beyond a record is not cut",
        "diskyard.operations.sizes",
        (("    if is_cut and _is_unwritten_beyond(repo, image.id, volume, actual_bytes):\n", "    if is_cut:\n"),),
        ("tests/api/test_sizes.py::test_what_was_written_since_an_extend_is_not_cut[prepare-raw]",),
    ),
    Guard(
        "a base that a copy waits for",
        "diskyard.planner.change",
        (("    for copy_id in sorted(state.waiting_for(image_id)):\n", "    for copy_id in ():\n"),),
        (f"{BASES}::test_a_base_that_arrived_after_its_copy_was_asked_for",),
    ),
    Guard(
        "a base that a disk still writes to",
        "diskyard.planner.common",
        (("    return image if _is_frozen(state, image) else None\n", "    return image\n"),),
        (f"{BASES}::test_a_snapshot_that_was_begun_and_never_made", f"{STALE}::test_a_base_that_a_switch_is_making"),
    ),
    Guard(
        "a removed base that a copy waits for",
        "diskyard.planner.normalise",
        (("    return is_sealed and bool(state.waiting_for(image.id))\n", "    return False\n"),),
        (f"{BASES}::test_a_broken_base_that_nobody_sees_any_more",),
    ),
    Guard(
        "a base that was seen is there when its copy is committed",
        "diskyard.planner.copy",
        (("    if base is None and request.base_was_here:\n", "    if False:\n"),),
        (f"{BASES}::test_a_base_that_is_removed_while_its_copy_is_begun",),
    ),
    Guard(
        "a broken Snapshot is not the copy that was asked for",
        "diskyard.planner.copy",
        (("    if not is_pending and why_broken(draft.state, image, draft.missing) is not None:\n", "    if False:\n"),),
        ("tests/api/test_copy.py::test_a_snapshot_that_is_broken_where_it_is_copied_to",),
    ),
    Guard(
        "what restores a broken Snapshot is held until it is whole",
        "diskyard.fixes.judge",
        (("    return copy is None or why_broken(sight.state, copy, sight.missing) is None, None\n", "    return True, None\n"),),
        ("tests/api/test_copy.py::test_a_snapshot_that_is_broken_where_it_is_copied_to",),
    ),
    Guard(
        "a disk is not copied for a Snapshot",
        "diskyard.operations.copy",
        (("    if source.kind == \"virtual_disk\" or home_repo.marker == target_repo.marker:\n", "    if False:\n"),),
        ("tests/api/test_copy.py::test_a_disk_under_the_id_of_a_snapshot",),
    ),
    Guard(
        "the note of an extend that is done",
        "diskyard.operations.sizes",
        (("            _put_note(repo, image_id, None)\n", ""),),
        ("tests/api/test_rounded.py::test_the_note_of_an_extend_that_a_power_cut_brings_back",),
    ),
    Guard(
        "what cannot be committed is not done to a file",
        "diskyard.operations.sizes",
        (("    repo.log.require_writable()  # if nothing can be committed, the volume must not be changed either\n", ""),),
        ("tests/api/test_sizes.py::test_nothing_is_cut_where_it_cannot_be_committed[after it grew-raw]",),
    ),
    Guard(
        "the inode's time of change",
        "diskyard.host.reading",
        ((":{info.st_ctime_ns}\"", ":0\""),),
        ("tests/api/test_transfer.py::test_a_file_that_changes_while_it_is_imported[once it is open-_write_in_place-raw]",),
    ),
    Guard(
        "what a check saw of a disk that was given out",
        "diskyard.fixes.scan",
        ((" and not _has_changed(repo, volume, before):", ":"),),
        ("tests/api/test_own_looks.py::test_what_a_check_saw_of_a_disk_given_out_says_nothing[_nobody_prepared]",),
    ),
]  # fmt: skip
