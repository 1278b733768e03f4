"""``diskyard task``: what runs on this host, and what ran in the last day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from diskyard.cli.base import Group, wants_json
from diskyard.cli.complete import complete_image
from diskyard.cli.find import find
from diskyard.cli.output import answer, on_terminal, print_fields, print_json, print_table
from diskyard.cli.session import open_yard, refuse
from diskyard.cli.values import human_size, human_time, shown

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.results import Task

_SHORT_ID = 8


@click.group("task", cls=Group, short_help="Work that runs on this host, or did.")
def task() -> None:
    """Tasks of this host, of every process: those that run, and those of the last day."""


@task.command("list", example="diskyard task list --image fast/web")
@click.option("--image", shell_complete=complete_image, help="Only tasks on this image.")
@click.option("--running", is_flag=True, help="Only tasks that have not ended.")
def list_(image: str | None, running: bool) -> None:
    """List tasks, the oldest first."""
    with open_yard() as yard:
        tasks = yard.list_tasks(None if image is None else find(yard, image).image_id)
    if running:
        tasks = [found for found in tasks if found.state in ("queued", "running")]
    if wants_json():
        print_json(tasks)
        return
    columns = ["TASK", "WHAT", "~REPO", "IMAGE", "STATE", ">DONE", ">RATE", ">LEFT", "QUEUED"]
    length = _SHORT_ID if on_terminal() else None
    print_table(
        columns,
        [
            (
                found.task_id[:length],
                found.verb,
                found.repository_id,
                (found.image_id or "")[:length],
                found.state,
                _percent(found),
                _rate(found),
                _left(found),
                found.queued_at[:19].replace("T", " "),
            )
            for found in tasks
        ],
    )


def _percent(found: Task) -> str:
    return f"{found.percent} %" if found.percent >= 0 else ""


def _rate(found: Task) -> str:
    return f"{human_size(found.rate_bytes_per_s)}/s" if found.state == "running" else ""


def _left(found: Task) -> str:
    known = found.state == "running" and found.remaining_s is not None
    return human_time(found.remaining_s or 0) if known else ""


def _find_task(yard: Diskyard, text: str) -> Task:
    """The task with this id, or with an id that begins like this."""
    found = [task for task in yard.list_tasks() if len(text) >= 4 and task.task_id.startswith(text)]
    if len(found) > 1:
        ids = ", ".join(task.task_id for task in found)
        raise refuse(f"{shown(text)!r:.80} is the beginning of several tasks: {ids}.", "Give more of the id.")
    return found[0] if found else yard.get_task(text)


@task.command(example="diskyard task show 1b4e28ba")
@click.argument("task")
def show(task: str) -> None:
    """Show one task; TASK is its id, or at least its first four characters."""
    with open_yard() as yard:
        found = _find_task(yard, task)
    if wants_json():
        print_json(found)
        return
    moved = (
        f"{human_size(found.done_bytes)} of {human_size(found.total_bytes)}" if found.total_bytes else None
    )
    error = found.error or {}
    print_fields(
        [
            ("task", found.task_id),
            ("what", found.verb),
            ("repository", found.repository_id),
            ("image", found.image_id),
            ("state", found.state),
            ("stage", found.stage),
            ("done", _percent(found)),
            ("bytes", moved),
            ("rate", _rate(found)),
            ("left", _left(found)),
            ("changed", found.changed),
            ("error", error.get("message")),
            ("advice", error.get("advice")),
            ("queued", found.queued_at),
            ("started", found.started_at),
            ("ended", found.ended_at),
        ]
    )


@task.command(example="diskyard task stop 1b4e28ba")
@click.argument("task")
def stop(task: str) -> None:
    """Stop a task at its next checkpoint: the work that it has done stays, and its fix stays listed."""
    with open_yard() as yard:
        found = _find_task(yard, task)
        yard.stop_task(found.task_id)
        words = "is asked to stop" if found.state in ("queued", "running") else f"has ended: {found.state}"
        answer({"taskId": found.task_id}, f"Task {found.task_id} {words}.")
