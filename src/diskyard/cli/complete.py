"""Completions in a shell, for a repository, an image or a verb."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from diskyard import errors

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _starting(words: list[str], typed: str) -> list[CompletionItem]:
    """Words that can be given to a shell: it shows them as they are, and takes each line for one."""
    return [CompletionItem(word) for word in words if word.startswith(typed) and word.isprintable()]


def complete_verb(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Verbs of the API."""
    from diskyard.model.verbs import VERBS

    return _starting(list(VERBS), typed)


def complete_repo(context: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Connected repositories."""
    from diskyard.cli.session import open_yard

    try:
        with context.scope(), open_yard() as yard:
            return _starting(list(yard.connected()), typed)
    except (errors.DiskyardError, OSError):
        return []  # an error must not appear while a shell completes


def complete_image(context: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Images as REPO/NAME; the repositories first."""
    from diskyard.cli.find import Found, images_of
    from diskyard.cli.session import open_yard

    try:
        with context.scope(), open_yard() as yard:
            named = [repo_id for repo_id in yard.connected() if typed.startswith(f"{repo_id}/")]
            if not named:
                return _starting([f"{repo_id}/" for repo_id in yard.connected()], typed)
            images = [Found(repo, info).title for repo in named for info in images_of(yard, repo)]
            return _starting(images, typed)
    except (errors.DiskyardError, OSError):
        return []
