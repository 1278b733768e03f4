"""The verbs as methods. ``async_verbs.py`` is made from this file (scripts/make_async)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from diskyard.client.form import Options, or_empty, words_of
from diskyard.client.values import Connected
from diskyard.client.waiting import Waiting
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


class Verbs(Waiting):
    """Every verb of the API: its parameters, results and errors, in snake_case."""

    def _run(self, kind: type[ask.Request], /, **parameters: Any) -> Any:
        return self.transport.run(kind, words_of(kind, parameters))

    def call(self, verb: str, parameters: Any = None) -> Any:
        """Call a verb by its name on the wire, even one that only the daemon knows.

        :param parameters: JSON-like, with the names of the wire.
        :returns: the answer, JSON-like.
        """
        return self.transport.call(verb, {} if parameters is None else parameters)

    # -- repositories ---------------------------------------------------------------

    def create_storage_repository(self, repo_format: str, connection_parameters: Mapping[str, Any]) -> None:
        """Make an empty repository in an empty location."""
        self._run(
            ask.CreateStorageRepository,
            repo_format=repo_format,
            connection_parameters=connection_parameters,
        )

    def remove_storage_repository(self, repository_id: str) -> None:
        """Remove a repository that holds no image."""
        self._run(ask.RemoveStorageRepository, repository_id=repository_id)

    def connect_storage_repository(
        self, repo_id: str, repo_format: str, connection_parameters: Mapping[str, Any]
    ) -> None:
        """Connect a repository on this host under a name that the caller chooses."""
        self._run(
            ask.ConnectStorageRepository,
            repo_id=repo_id,
            repo_format=repo_format,
            connection_parameters=connection_parameters,
        )

    def disconnect_storage_repository(self, repo_id: str) -> None:
        """Disconnect a repository from this host."""
        self._run(ask.DisconnectStorageRepository, repo_id=repo_id)

    def list_storage_repositories(self) -> list[RepositoryInfo]:
        """List the repositories connected on this host, with their space."""
        answer: list[RepositoryInfo] = self._run(ask.ListStorageRepositories)
        return answer

    def connected(self) -> Connected:
        """Format and parameters of every connection by its repoId. No storage is used."""
        return self.transport.connected()

    # -- images -----------------------------------------------------------------------

    def create_virtual_disk(
        self,
        target_repo_id: str,
        size: int,
        base_snapshot_id: str | None = None,
        user_data: Any = msgspec.UNSET,
        options: Options | None = None,
    ) -> str:
        """Create a VirtualDisk of ``size`` bytes, empty or with a Snapshot's bytes; returns its id."""
        answer: str = self._run(
            ask.CreateVirtualDisk,
            target_repo_id=target_repo_id,
            size=size,
            base_snapshot_id=base_snapshot_id,
            user_data=or_empty(user_data),
            options=options,
        )
        return answer

    def create_snapshot(
        self,
        target_repo_id: str,
        base_virtual_disk_id: str,
        user_data: Any = msgspec.UNSET,
        options: Options | None = None,
    ) -> str:
        """Keep what a VirtualDisk holds now as a Snapshot; returns its id."""
        answer: str = self._run(
            ask.CreateSnapshot,
            target_repo_id=target_repo_id,
            base_virtual_disk_id=base_virtual_disk_id,
            user_data=or_empty(user_data),
            options=options,
        )
        return answer

    def copy_image(
        self,
        target_repo_id: str,
        image_id: str,
        base_image_id: str | None = None,
        user_data: Any = msgspec.UNSET,
        options: Options | None = None,
    ) -> str:
        """Copy an image, either whole or as the difference to a base in the target; returns the copy's id."""
        answer: str = self._run(
            ask.CopyImage,
            target_repo_id=target_repo_id,
            image_id=image_id,
            base_image_id=base_image_id,
            user_data=or_empty(user_data),
            options=options,
        )
        return answer

    def remove_image(self, repository_id: str, image_id: str, options: Options | None = None) -> None:
        """Remove an image; other images that read its bytes keep them."""
        self._run(ask.RemoveImage, repository_id=repository_id, image_id=image_id, options=options)

    def get_image_status(self, repository_id: str, image_id: str) -> ImageStatus:
        """Ask whether an image is optimized, degraded or broken, and which task works on it."""
        answer: ImageStatus = self._run(ask.GetImageStatus, repository_id=repository_id, image_id=image_id)
        return answer

    def list_images(
        self,
        repository_id: str,
        kind: str | None = None,
        status: str | None = None,
        image_ids: list[str] | None = None,
        limit: int = 1000,
        cursor: str | None = None,
    ) -> ImagePage:
        """List one page of images, ordered by id."""
        answer: ImagePage = self._run(
            ask.ListImages,
            repository_id=repository_id,
            kind=kind,
            status=status,
            image_ids=image_ids,
            limit=limit,
            cursor=cursor,
        )
        return answer

    def get_image_info(self, repository_id: str, image_id: str) -> ImageInfo:
        """Get everything that callers may know about one image."""
        answer: ImageInfo = self._run(ask.GetImageInfo, repository_id=repository_id, image_id=image_id)
        return answer

    def set_user_data(
        self, repository_id: str, image_id: str, user_data: Any, options: Options | None = None
    ) -> None:
        """Replace an image's userData."""
        self._run(
            ask.SetUserData,
            repository_id=repository_id,
            image_id=image_id,
            user_data=user_data,
            options=options,
        )

    def set_strategy(
        self, repository_id: str, image_id: str, strategy: str, options: Options | None = None
    ) -> None:
        """Change what an image is optimized for."""
        self._run(
            ask.SetStrategy,
            repository_id=repository_id,
            image_id=image_id,
            strategy=strategy,
            options=options,
        )

    def extend_virtual_disk(
        self, repository_id: str, image_id: str, size: int, options: Options | None = None
    ) -> None:
        """Make a VirtualDisk ``size`` bytes large; the new part reads as zeros."""
        self._run(
            ask.ExtendVirtualDisk,
            repository_id=repository_id,
            image_id=image_id,
            size=size,
            options=options,
        )

    def revert_virtual_disk(
        self,
        repository_id: str,
        image_id: str,
        snapshot_id: str,
        options: Options | None = None,
    ) -> None:
        """Give a VirtualDisk a Snapshot's bytes and size; it keeps its id."""
        self._run(
            ask.RevertVirtualDisk,
            repository_id=repository_id,
            image_id=image_id,
            snapshot_id=snapshot_id,
            options=options,
        )

    def untrack_changes(self, repository_id: str, image_id: str, copy_image_id: str | None = None) -> None:
        """Stop tracking a VirtualDisk's changes since a copy, or since all copies."""
        self._run(
            ask.UntrackChanges,
            repository_id=repository_id,
            image_id=image_id,
            copy_image_id=copy_image_id,
        )

    def prepare_image(self, repository_id: str, image_id: str, options: Options | None = None) -> Attached:
        """Attach an image; returns what QEMU and libvirt need to open it."""
        answer: Attached = self._run(
            ask.PrepareImage, repository_id=repository_id, image_id=image_id, options=options
        )
        return answer

    def teardown_image(self, repository_id: str, image_id: str, options: Options | None = None) -> None:
        """End an attachment; if there is none, nothing happens."""
        self._run(ask.TeardownImage, repository_id=repository_id, image_id=image_id, options=options)

    def import_image(
        self,
        target_repo_id: str,
        path: str,
        format: str,
        user_data: Any = msgspec.UNSET,
        options: Options | None = None,
    ) -> str:
        """Make an image from a file of this host; returns its id."""
        answer: str = self._run(
            ask.ImportImage,
            target_repo_id=target_repo_id,
            path=path,
            format=format,
            user_data=or_empty(user_data),
            options=options,
        )
        return answer

    def export_image(
        self,
        repository_id: str,
        image_id: str,
        path: str,
        format: str,
        options: Options | None = None,
    ) -> Task:
        """Write an image to a new file of this host, which gets its name when it is durable."""
        answer: Task = self._run(
            ask.ExportImage,
            repository_id=repository_id,
            image_id=image_id,
            path=path,
            format=format,
            options=options,
        )
        return answer

    # -- fixes, tasks, host ---------------------------------------------------------------

    def check_storage_repository(self, repository_id: str, options: Options | None = None) -> list[Fix]:
        """List the fixes that a repository needs."""
        answer: list[Fix] = self._run(
            ask.CheckStorageRepository, repository_id=repository_id, options=options
        )
        return answer

    def fix_storage_repository(
        self, repository_id: str, fix: Fix | Mapping[str, Any], options: Options | None = None
    ) -> Task:
        """Start a fix that check listed."""
        answer: Task = self._run(
            ask.FixStorageRepository, repository_id=repository_id, fix=fix, options=options
        )
        return answer

    def list_tasks(self, image_id: str | None = None) -> list[Task]:
        """List this host's tasks of the last day, of every process."""
        answer: list[Task] = self._run(ask.ListTasks, image_id=image_id)
        return answer

    def get_task(self, task_id: str) -> Task:
        """Get one task."""
        answer: Task = self._run(ask.GetTask, task_id=task_id)
        return answer

    def stop_task(self, task_id: str) -> None:
        """Stop a task; the work that it has done stays, and its fix stays listed."""
        self._run(ask.StopTask, task_id=task_id)

    def get_host_info(self) -> HostInfo:
        """Get this host's id, its version and its repository formats."""
        answer: HostInfo = self._run(ask.GetHostInfo)
        return answer
