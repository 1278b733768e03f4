"""The last entry of a repository that is being removed: nothing can be published after it."""

from __future__ import annotations

from collections.abc import Callable

from diskyard import errors
from diskyard.model.records import CopyHold
from diskyard.model.state import State
from diskyard.model.transaction import Draft


def close(draft: Draft, is_locked: Callable[[str], bool]) -> None:
    """Close the log of a repository that nobody needs.

    An entry that any host is about to publish comes either before this one, and is seen here, or after it,
    and is refused. An operation or fix that makes or deletes a volume has published that before it begins,
    and holds the lease of the image or of the volume.

    :param is_locked: whether somebody holds the lease of an image or a volume.
    :raises diskyard.errors.NotEmpty: the repository has an image that verbs return, or data that is held.
    :raises diskyard.errors.RepositoryInUse: something is attached or worked on.
    """
    require_empty(draft.state)
    _require_idle(draft.state, is_locked)
    draft.close()


def require_empty(state: State) -> None:
    """Refuse to remove a repository whose data somebody may still want.

    :raises diskyard.errors.NotEmpty: there is an image that verbs return, or one that is held.
    """
    strong = sum(image.is_strong for image in state.images.values())
    if strong:
        raise errors.NotEmpty(
            f"The repository holds {strong} {'image' if strong == 1 else 'images'}.",
            advice="Remove its images first.",
        )
    holds = [hold for image_id in state.held for hold in state.images[image_id].held_for]
    copies = sorted(hold.copy_id for hold in holds if isinstance(hold, CopyHold))
    if copies:
        raise errors.NotEmpty(
            f"The repository holds data that copies elsewhere are made from: {', '.join(copies)}.",
            advice="Complete these images with the mend fixes of their repositories, or remove them; "
            "then run the clean fixes that checkStorageRepository lists here.",
        )
    if holds:
        raise errors.NotEmpty(
            "The repository holds data with which changes are tracked.",
            advice="Run the clean fixes that checkStorageRepository lists here.",
        )


def _require_idle(state: State, is_locked: Callable[[str], bool]) -> None:
    names = [
        f"image {found.image_id} is attached on host {found.host.host_id} for {found.owner}"
        for found in state.attachments.values()
    ]
    for volume in state.volumes.values():
        keys = {volume.id} if volume.building is None else {volume.id, volume.building.image_id}
        names += [f"image or volume {key} is being worked on" for key in sorted(keys) if is_locked(key)]
    names += [f"image {key} is being worked on" for key in state.images if is_locked(key)]
    if names:
        raise errors.RepositoryInUse(f"The repository is in use: {'; '.join(names)}.")
