"""The verbs about what runs on this host."""

from __future__ import annotations

from diskyard.model import requests as ask
from diskyard.model.results import Task
from diskyard.model.verbs.shown import COPY, MEND, TASK
from diskyard.model.verbs.verb import STATE_FOLDER, Example, Verb

VERBS = (
    Verb(
        ask.ListTasks,
        "read",
        "operations.tasks",
        result=list[Task],
        is_long=True,
        errors=STATE_FOLDER,
        examples=(Example("On one image", {"imageId": COPY}, [MEND]),),
    ),
    Verb(
        ask.GetTask,
        "read",
        "operations.tasks",
        result=Task,
        errors=STATE_FOLDER | {"TaskNotFound"},
        examples=(Example("A mend that runs", {"taskId": TASK}, MEND),),
    ),
    Verb(
        ask.StopTask,
        "write",
        "operations.tasks",
        errors=STATE_FOLDER | {"TaskNotFound", "NoSpace"},
        examples=(Example("By its id", {"taskId": TASK}),),
    ),
)
