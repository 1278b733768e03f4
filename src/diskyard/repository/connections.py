"""The repositories connected on this host, and finding an image in them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from diskyard import errors
from diskyard.caller import may_use
from diskyard.host import Host
from diskyard.host.calls import ThreadCalls, calls_of_this_thread, no_answer
from diskyard.log.index.keeper import IndexKeeper
from diskyard.log.index.local import LocalIndex
from diskyard.log.log import Log
from diskyard.model.options import Options
from diskyard.model.records import Image
from diskyard.model.state import State
from diskyard.model.status import why_broken
from diskyard.planner.same import why_another
from diskyard.repository.commit import refresh
from diskyard.repository.remembered import Remembered
from diskyard.repository.repository import Repository
from diskyard.repository.settled import look_at, volumes_below
from diskyard.storage.interface import Storage
from diskyard.storage.registry import find_format


def require_may_use(repo_id: str) -> None:
    """Refuse a repoId that the present caller may not use, whether it names anything or not.

    :raises diskyard.errors.Forbidden: the caller may not use it.
    """
    if not may_use(repo_id):
        raise errors.Forbidden(
            f"The token is not bound to repository {repo_id!r:.80}.",
            advice="Use a token that is bound to it, or to none.",
            repositoryId=repo_id[:255],
        )


#: Called with a repoId and the repository that it names. It returns a function that ends what it began.
Follower = Callable[[str, Repository], Callable[[], None]]


class Connections:
    """repoIds and the repositories that they name, in the order of their connection.

    Safe to use from several threads.

    :param index_folder: the directory for indexes of the repositories' logs; None to keep none.
    """

    def __init__(self, host: Host, index_folder: str | None = None) -> None:
        self._host = host
        self._index_folder = index_folder
        self._lock = threading.RLock()  # held only for a moment, never while storage is asked
        self._connecting: dict[str, ThreadCalls] = {}
        self._connected: dict[str, Repository] = {}
        self._known: dict[str, tuple[str, dict[str, Any]]] = {}
        self._followers: list[Follower] = []
        self._ends: dict[str, list[Callable[[], None]]] = {}

    def when_connected(self, follow: Follower) -> None:
        """Call ``follow`` for every repository that is connected from now on.

        The function that it returns is called when the repository is disconnected, or connected anew.
        """
        self._followers.append(follow)

    def connect(self, repo_id: str, format_name: str, parameters: Mapping[str, Any]) -> bool:
        """Connect a repository; False if it was connected under this repoId already.

        The same repository under another repoId is an alias; it is searched only once. If the repository was
        connected with other parameters, such as another path to it, the new ones replace them. If its history
        was replaced, all its aliases continue with the history that there is now.

        :raises diskyard.errors.RepositoryIdInUse: the repoId names another repository.
        :raises diskyard.errors.NotARepository: there is no repository, or it is a copy of one that is
            connected: what one of the two has would be garbage in the other.
        """
        if not repo_id.isprintable() or not 1 <= len(repo_id.encode(errors="replace")) <= 255:
            raise errors.InvalidParameter("A repoId must be 1-255 bytes of UTF-8 without control characters.")
        self._require_answering(repo_id)
        attempt = calls_of_this_thread()
        self._connecting[repo_id] = attempt
        try:
            # Without the lock: storage that does not answer must not keep other threads waiting.
            storage = find_format(format_name).connect(parameters, self._host)
            if self._is_connected(repo_id, storage):
                self._known[repo_id] = (format_name, dict(parameters))
                return False
            self._require_unused(repo_id, format_name, parameters, storage)
            log = Log(storage, self._host, keeper=self._index_keeper(storage.marker))
            refresh(log)
        finally:
            if self._connecting.get(repo_id) is attempt:
                del self._connecting[repo_id]
        with self._lock:
            if self._is_connected(repo_id, storage):
                return False
            repo = self._connected.get(repo_id)
            if not (
                repo is None or repo.storage.place == storage.place or _is_same_place(repo.storage, storage)
            ):
                raise errors.RepositoryIdInUse(f"{repo_id} names another repository.", repositoryId=repo_id)
            alias_repo = next(
                (known_repo for known_repo in self._connected.values() if _is_alias(known_repo, storage)),
                None,
            )
            if alias_repo is not None:
                _require_same_place(alias_repo, storage)
                log = alias_repo.log
            self._known[repo_id] = (format_name, dict(parameters))
            repo = Repository(repo_id, format_name, storage, log, self._host)
            self._follow(repo_id, repo)
            for known_id, known_repo in list(self._connected.items()):
                if known_repo.log.replaced is not None and _is_same_place(known_repo.storage, storage):
                    self._follow(known_id, replace(known_repo, log=log, remembered=Remembered()))
            return True

    def _follow(self, repo_id: str, repo: Repository) -> None:
        """Let a repoId name this repository object, and end what followed the object before it."""
        for end in self._ends.pop(repo_id, ()):
            end()
        self._connected[repo_id] = repo
        self._ends[repo_id] = [follow(repo_id, repo) for follow in self._followers]

    def _require_unused(
        self, repo_id: str, format_name: str, parameters: Mapping[str, Any], storage: Storage
    ) -> None:
        """Refuse a repoId that names another repository, even one that is not connected at present."""
        known, repo = self._known.get(repo_id), self._connected.get(repo_id)
        if known is None or known == (format_name, dict(parameters)):
            return
        known_storage = None if repo is None else repo.storage
        if known_storage is None:
            with contextlib.suppress(errors.NotARepository, errors.StorageError):
                known_storage = find_format(known[0]).connect(known[1], self._host)
        if known_storage is None or not _is_same_place(known_storage, storage):
            raise errors.RepositoryIdInUse(f"{repo_id} names another repository.", repositoryId=repo_id)

    def _index_keeper(self, marker: str) -> IndexKeeper | None:
        if self._index_folder is None:
            return None
        return IndexKeeper(LocalIndex(self._host, self._index_folder, marker))

    def _is_connected(self, repo_id: str, storage: Storage) -> bool:
        repo = self._connected.get(repo_id)
        if repo is None or repo.log.replaced is not None:
            return False
        return _is_same_place(repo.storage, storage)

    def _require_answering(self, repo_id: str) -> None:
        """Refuse to wait for storage that has kept another thread waiting for too long."""
        attempt = self._connecting.get(repo_id)
        call = None if attempt is None else attempt.overdue()
        if call is not None:
            raise no_answer(call, repositoryId=repo_id)

    def remember(self, repo_id: str, format_name: str, parameters: Mapping[str, Any]) -> None:
        """Take over a connection of an earlier process. It is made when it is needed."""
        with self._lock:
            self._known[repo_id] = (format_name, dict(parameters))

    def disconnect(self, repo_id: str) -> None:
        """Forget a connection; the repository itself is left as it is."""
        with self._lock:
            if repo_id not in self._known:
                raise self._unknown(repo_id)
            del self._known[repo_id]
            repo = self._connected.pop(repo_id, None)
            for end in self._ends.pop(repo_id, ()):
                end()
            if repo is not None:
                repo.storage.close()
        if repo is not None:
            repo.log.close()

    def close(self) -> None:
        """Store what makes the next connection quick. The connections can still be used."""
        for repo in self.connected().values():
            repo.log.close()

    def get(self, repo_id: str) -> Repository:
        """The repository that a repoId names.

        :raises diskyard.errors.Forbidden: the present caller may not use it.
        :raises diskyard.errors.RepositoryNotConnected: it names none; the message lists the repoIds that do.
        :raises diskyard.errors.RepositoryUnavailable: it was connected before, and cannot be connected now.
        """
        require_may_use(repo_id)
        return self._get(repo_id)

    def _get(self, repo_id: str) -> Repository:
        with self._lock:
            known, repo = self._known.get(repo_id), self._connected.get(repo_id)
        if known is None:
            raise self._unknown(repo_id)
        if repo is not None:
            return repo
        try:
            self.connect(repo_id, *known)
        except (errors.NotARepository, errors.StorageError) as error:
            raise errors.RepositoryUnavailable(
                f"{repo_id} cannot be connected again: {error.message}",
                repositoryId=repo_id,
            ) from error
        with self._lock:
            repo = self._connected.get(repo_id)
        if repo is None:
            raise self._unknown(repo_id)  # disconnected meanwhile
        return repo

    def _unknown(self, repo_id: str) -> errors.RepositoryNotConnected:
        known = ", ".join(filter(may_use, self._known)) or "none"
        return errors.RepositoryNotConnected(
            f"No repository is connected as {repo_id!r:.80} (connected: {known}).",
            repositoryId=repo_id[:255],
        )

    def is_reachable(self, repo_id: str) -> bool:
        """Whether a known connection can be used now."""
        if repo_id not in self._known:
            raise self._unknown(repo_id)
        try:
            self.get(repo_id)
        except errors.DiskyardError:
            return False
        return True

    def named(self, *, to_anybody: bool = False) -> dict[str, Repository]:
        """Every repoId that can be used, with aliases, in the order of connection.

        :param to_anybody: with the repositories that the caller may not use. Only for judging what is in use,
            never for reading their contents or telling the caller of them.
        """
        found = {}
        for key in self.remembered():
            with contextlib.suppress(errors.DiskyardError):
                found[key] = self._get(key) if to_anybody else self.get(key)
        return found

    def connected(self) -> dict[str, Repository]:
        """What is connected at present. This connects nothing again."""
        with self._lock:
            return dict(self._connected)

    def remembered(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Format and parameters by repoId, including those that cannot be used now."""
        with self._lock:
            return dict(self._known)

    def repositories(self, *, to_anybody: bool = False) -> list[Repository]:
        """Every repository once, in the order of connection; see :meth:`named`."""
        seen: dict[str, Repository] = {}
        for repo in self.named(to_anybody=to_anybody).values():
            seen.setdefault(repo.marker, repo)
        return list(seen.values())

    def among(self, repo_ids: Iterable[str] | None) -> list[Repository] | None:
        """The repositories that some repoIds name; None, which stands for all, if ``repo_ids`` is None.

        :raises diskyard.errors.RepositoryNotConnected: one of them is not connected.
        """
        return None if repo_ids is None else [self.get(repo_id) for repo_id in repo_ids]

    def by_marker(self, marker: str, *, to_anybody: bool = False) -> Repository | None:
        """The connected repository with this marker; see :meth:`named`."""
        repos = self.repositories(to_anybody=to_anybody)
        return next((repo for repo in repos if repo.marker == marker), None)

    # -- looking for images --------------------------------------------------------------

    def find(
        self,
        image_id: str,
        options: Options,
        first_repo: Repository | None = None,
        known: Mapping[str, State] | None = None,
    ) -> tuple[Repository, State, Image]:
        """Find the image with this id that verbs return, and its repository.

        ``first_repo`` is searched first, then the others in the order of their connection.
        ``participatingRepositories`` replaces these, and a hint names the only repository to search. A
        repository that does not answer is skipped. A repository with the whole image is preferred to one
        where the image cannot be read, or is not complete. If a Snapshot is not whole in ``first_repo``, all
        searched repositories must have the same Snapshot: an id alone says nothing about bytes.

        :param known: states that were read just now and are the newest, by the markers of their repositories.
        :raises diskyard.errors.ImageNotFound: names the repositories that were searched.
        :raises diskyard.errors.RepositoryUnavailable: none of the repositories that answered has the image.
            Names those that did not answer.
        :raises diskyard.errors.ImageIdInUse: two searched repositories have different images with this id.
        """
        searched, silent, seen = [], [], set[str]()
        whole: tuple[Repository, State, Image] | None = None
        broken: tuple[Repository, State, Image] | None = None
        for repo in self._search_order(image_id, options, first_repo):
            if repo.marker in seen:
                continue
            seen.add(repo.marker)
            try:
                sight = look_at(repo, volumes_below(image_id), (known or {}).get(repo.marker))
            except (errors.DiskyardError, OSError) as error:
                silent.append(f"{repo.repo_id} ({error})")
                continue
            searched.append(repo.repo_id)
            image = sight.state.images.get(image_id)
            if image is not None and image.is_strong:
                _require_one_image(whole or broken, repo, image)
                if why_broken(sight.state, image, sight.missing) is not None:
                    broken = broken or (repo, sight.state, image)
                elif image.kind == "virtual_disk" or (repo is first_repo and broken is None):
                    return repo, sight.state, image
                else:
                    whole = whole or (repo, sight.state, image)
        if (found := whole or broken) is not None:
            return found
        nowhere = f"No searched repository has image {image_id} (searched: {', '.join(searched) or 'none'})."
        if silent:  # it may well be there: a caller that hears otherwise may forget it
            raise errors.RepositoryUnavailable(
                f"{nowhere} These repositories did not answer: {', '.join(silent)}.",
                advice="Repair the storage, or disconnect it; or narrow the search with "
                "participatingRepositories.",
                imageId=image_id,
            )
        raise errors.ImageNotFound(nowhere, imageId=image_id)

    def _search_order(
        self, image_id: str, options: Options, first_repo: Repository | None
    ) -> Iterator[Repository]:
        """The repositories to search, one after the other. None is connected before its turn."""
        hint = options.image_hints.get(image_id)
        if hint is not None:
            yield self.get(hint)
        elif options.participating_repositories is not None:
            yield from [self.get(repo_id) for repo_id in options.participating_repositories]
        else:
            if first_repo is not None:
                yield first_repo
            for repo_id in self.remembered():
                with contextlib.suppress(errors.DiskyardError):
                    yield self.get(repo_id)


def _require_one_image(found: tuple[Repository, State, Image] | None, repo: Repository, image: Image) -> None:
    """Refuse to choose between two images with one id: only the caller knows which one is meant."""
    if found is None or (why := why_another(found[2], image)) is None:
        return
    raise errors.ImageIdInUse(
        f"Repositories {found[0].repo_id} and {repo.repo_id} have different images under the id "
        f"{image.id}: in the latter {why}.",
        advice="Select one of them with imageHints, or remove the other.",
        imageId=image.id,
    )


def _is_alias(repo: Repository, storage: Storage) -> bool:
    """Whether storage may be that of a connected repository, whose log it can share.

    A repository whose history was replaced shares its log with none.
    """
    return repo.marker == storage.marker and repo.log.replaced is None


def _is_same_place(storage: Storage, other_storage: Storage) -> bool:
    same = storage.place == other_storage.place or storage.identity == other_storage.identity
    return storage.marker == other_storage.marker and same


def _require_same_place(known_repo: Repository, storage: Storage) -> None:
    if not _is_same_place(known_repo.storage, storage):
        raise errors.NotARepository(
            f"{storage.place} is a byte copy of {known_repo.storage.place}, which is connected as "
            f"{known_repo.repo_id}: the two have the same identity.",
            advice="Disconnect one before you connect the other, or give this one an identity of its own "
            "(newMarker: true; diskyard repo connect --new-identity).",
        )
