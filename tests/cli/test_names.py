from __future__ import annotations

import json

from diskyard import Diskyard
from tests.cli.program import Program


def test_every_way_to_name_an_image(program: Program) -> None:
    image_id = program.disk("fast", "web")
    for text in ("web", image_id, f"fast/{image_id}", image_id[:8], f"fast/{image_id[:6]}"):
        assert program.run("image", "show", text, "--json").json["imageId"] == image_id
    program.run("image", "show", image_id[:3], status=18)
    program.run("image", "show", "backup/web", status=18)
    error = program.run("image", "show", "wob", status=18).err
    assert error.startswith("diskyard: No image has the name or id 'wob' (repositories: fast, backup).\n  ")


def test_a_name_is_given_once_in_a_repository(program: Program) -> None:
    program.disk("fast", "web")
    again = program.run("disk", "create", "fast", "1M", "--name", "web", status=10)
    assert "already has an image called 'web'" in again.err
    program.disk("backup", "web")
    ambiguous = json.loads(program.run("image", "show", "web", "--json", status=10).err)
    assert ambiguous["code"] == "InvalidParameter"
    assert "fast/web (" in ambiguous["message"]
    assert "backup/web (" in ambiguous["message"]
    program.run("disk", "create", "fast", "1M", "--name", "a\x1b[0m", status=10)


def test_repeating_a_creation_with_its_id_is_no_second_image(program: Program) -> None:
    new_id = "5ab44c1d-2d5c-4b44-9c2b-3a0f6f6d7c11"
    words = ("disk", "create", "fast", "1M", "--name", "web", "--id", new_id)
    assert program.run(*words).id == program.run(*words).id == new_id


def test_slashes_and_aliases(program: Program) -> None:
    program.run("repo", "connect", "fast/too", "localfs-1.0", "path=fast")
    image_id = program.disk("fast", "a/b")
    for text in ("a/b", "fast/a/b", "fast/too/a/b"):
        assert program.run("image", "show", text, "--json").json["imageId"] == image_id


def test_a_snapshot_and_its_copy_have_one_id(program: Program) -> None:
    program.disk("fast", "web")
    snapshot = program.run("snapshot", "create", "web", "--name", "one").id
    assert program.run("snapshot", "copy", "one", "backup", "--name", "one").id == snapshot
    # The copy is there already: the same command again is no second image of that name.
    assert program.run("snapshot", "copy", "fast/one", "backup", "--name", "one").id == snapshot
    program.run("image", "show", snapshot, status=10)
    assert program.run("image", "show", f"backup/{snapshot}", "--json").json["repoId"] == "backup"
    # To verbs that read it the two are the same.
    program.run("disk", "create", "backup", "--from", snapshot, "--name", "new")


def test_kinds_are_told_apart(program: Program) -> None:
    program.disk("fast", "web")
    program.run("snapshot", "create", "web", "--name", "one")
    program.run("snapshot", "create", "one", status=20)
    program.run("disk", "create", "fast", "--from", "web", status=21)
    program.run("disk", "create", "fast", status=10)


def test_a_repository_that_does_not_answer_is_named(program: Program) -> None:
    program.disk("fast", "web")
    (program.folder / "backup").rename(program.folder / "gone")
    assert program.run("image", "show", "web").err == ""
    assert "These repositories did not answer: backup" in program.run("image", "show", "wob", status=18).err
    listed = program.run("image", "list", status=17)
    assert "fast/web" in listed.out
    assert "cannot be connected" in program.run("repo", "list").out


def test_what_others_put_in_user_data_does_no_harm(program: Program) -> None:
    with Diskyard() as yard:
        for user_data in ({"name": "\x1b[2Jx"}, {"name": 7}, [1], "text", None, {"labels": "none"}):
            yard.create_virtual_disk("fast", 512, user_data=user_data)
        images = yard.list_images("fast").images
    assert "\x1b" not in program.run("image", "list").out
    for image in images[:3]:
        assert "\x1b" not in program.run("image", "show", image.image_id).out
