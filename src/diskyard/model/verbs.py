"""The verbs as callers see them: each one's parameters, what a token needs for it, its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from diskyard.model import requests as ask
from diskyard.model.fix import Fix
from diskyard.model.results import (
    Attached,
    HostInfo,
    ImageInfo,
    ImagePage,
    ImageStatus,
    RepositoryInfo,
    Task,
)

#: What a token may do: each includes the ones before it.
Access = Literal["read", "write", "admin"]


@dataclass(frozen=True, slots=True)
class Form:
    """One verb's form.

    :param request: its parameters; its docstring is the verb's one sentence for people.
    :param access: the scope that a token needs for it.
    :param result: the type of its answer; None if it answers nothing.
    """

    request: type[ask.Request]
    access: Access
    result: Any = None

    @property
    def only_looks(self) -> bool:
        """Whether it changes nothing that a caller sees."""
        return self.access == "read"

    def access_of(self, request: ask.Request) -> Access:
        """The scope for one request: a deep check notes what it finds in the repository."""
        deep = isinstance(request, ask.CheckStorageRepository) and request.options.deep
        return "write" if deep and self.access == "read" else self.access

    @property
    def name(self) -> str:
        """The name on the wire: that of the request, with a small first letter."""
        return self.request.__name__[0].lower() + self.request.__name__[1:]


FORMS: dict[type[ask.Request], Form] = {
    form.request: form
    for form in (
        Form(ask.ConnectStorageRepository, "admin"),
        Form(ask.DisconnectStorageRepository, "admin"),
        Form(ask.CreateVirtualDisk, "write", str),
        Form(ask.CreateSnapshot, "write", str),
        Form(ask.CopyImage, "write", str),
        Form(ask.RemoveImage, "write"),
        Form(ask.GetImageStatus, "read", ImageStatus),
        Form(ask.CheckStorageRepository, "read", list[Fix]),
        Form(ask.FixStorageRepository, "write", Task),
        Form(ask.CreateStorageRepository, "admin"),
        Form(ask.RemoveStorageRepository, "admin"),
        Form(ask.ListStorageRepositories, "read", list[RepositoryInfo]),
        Form(ask.ListImages, "read", ImagePage),
        Form(ask.GetImageInfo, "read", ImageInfo),
        Form(ask.SetUserData, "write"),
        Form(ask.SetStrategy, "write"),
        Form(ask.ExtendVirtualDisk, "write"),
        Form(ask.RevertVirtualDisk, "write"),
        Form(ask.UntrackChanges, "write"),
        Form(ask.PrepareImage, "write", Attached),
        Form(ask.TeardownImage, "write"),
        Form(ask.ImportImage, "write", str),
        Form(ask.ExportImage, "write", Task),
        Form(ask.ListTasks, "read", list[Task]),
        Form(ask.GetTask, "read", Task),
        Form(ask.StopTask, "write"),
        Form(ask.GetHostInfo, "read", HostInfo),
    )
}
FORM_OF: dict[str, Form] = {form.name: form for form in FORMS.values()}
