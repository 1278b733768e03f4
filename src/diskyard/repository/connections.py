"""The repositories connected on this host, and where in them an image is."""

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
    """Refuse a repoId that is none of the present caller's, whether it names anything or not.

    :raises diskyard.errors.Forbidden: it is not.
    """
    if not may_use(repo_id):
        raise errors.Forbidden(
            f"The token is not bound to repository {repo_id!r:.80}.",
            advice="Use a token that is bound to it, or to none.",
            repositoryId=repo_id[:255],
        )


#: Is given a repoId and the place that it names; its answer ends what it began.
Follower = Callable[[str, Repository], Callable[[], None]]


class Connections:
    """repoIds and the places they name, in the order of their connection.

    Safe to use from several threads.

    :param index_folder: where indexes of their logs are kept; None for none.
    """

    def __init__(self, host: Host, index_folder: str | None = None) -> None:
        self._host = host
        self._index_folder = index_folder
        self._lock = threading.RLock()  # held for a moment only, never while storage is asked
        self._connecting: dict[str, ThreadCalls] = {}
        self._connected: dict[str, Repository] = {}
        self._known: dict[str, tuple[str, dict[str, Any]]] = {}
        self._followers: list[Follower] = []
        self._ends: dict[str, list[Callable[[], None]]] = {}

    def when_connected(self, follow: Follower) -> None:
        """Call ``follow`` for every place that is connected from now on.

        What it answers is called when the place is disconnected.
        """
        self._followers.append(follow)

    def connect(self, repo_id: str, format_name: str, parameters: Mapping[str, Any]) -> bool:
        """Connect a place; False if it was connected under this repoId already.

        The same place under another repoId is an alias, and is searched once. If it was connected by
        other parameters, as another path to it, these take their place. Where its history was
        replaced, all its aliases go on from what there is now.

        :raises diskyard.errors.RepositoryIdInUse: the repoId names another place.
        :raises diskyard.errors.NotARepository: it is a copy of a place that is connected: what one
            of the two has is garbage in the other.
        """
        if not repo_id.isprintable() or not 1 <= len(repo_id.encode(errors="replace")) <= 255:
            raise errors.InvalidParameter("A repoId must be 1-255 bytes of UTF-8 without control characters.")
        self._require_answering(repo_id)
        attempt = calls_of_this_thread()
        self._connecting[repo_id] = attempt
        try:
            # Not under the lock: storage that does not answer must not keep others waiting.
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
        """Have a repoId name a place as it is opened now; what followed it before ends."""
        for end in self._ends.pop(repo_id, ()):
            end()
        self._connected[repo_id] = repo
        self._ends[repo_id] = [follow(repo_id, repo) for follow in self._followers]

    def _require_unused(
        self, repo_id: str, format_name: str, parameters: Mapping[str, Any], storage: Storage
    ) -> None:
        """Refuse a repoId that another place has, also one that was connected before and is not now."""
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
        """Do not wait for storage that has kept another thread waiting for too long."""
        attempt = self._connecting.get(repo_id)
        call = None if attempt is None else attempt.overdue()
        if call is not None:
            raise no_answer(call, repositoryId=repo_id)

    def remember(self, repo_id: str, format_name: str, parameters: Mapping[str, Any]) -> None:
        """Note a connection of before, to be made when it is needed."""
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
        """Leave behind what makes connecting quick; the connections may be used all the same."""
        for repo in self.connected().values():
            repo.log.close()

    def get(self, repo_id: str) -> Repository:
        """The place that a repoId names.

        :raises diskyard.errors.Forbidden: it is none of the present caller's.
        :raises diskyard.errors.RepositoryNotConnected: none; the message lists those there are.
        :raises diskyard.errors.RepositoryUnavailable: it was connected before, and cannot be now.
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
        """Every repoId that can be used, aliases too, in the order of connection.

        :param to_anybody: also those that are none of the caller's: for judging what is in use,
            never for reading what they hold, or telling of them.
        """
        found = {}
        for key in self.remembered():
            with contextlib.suppress(errors.DiskyardError):
                found[key] = self._get(key) if to_anybody else self.get(key)
        return found

    def connected(self) -> dict[str, Repository]:
        """What is connected just now; nothing is connected again for it."""
        with self._lock:
            return dict(self._connected)

    def remembered(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Format and parameters by repoId, also of those that cannot be used now."""
        with self._lock:
            return dict(self._known)

    def places(self, *, to_anybody: bool = False) -> list[Repository]:
        """Every place once, in the order of connection; as of :meth:`named`."""
        seen: dict[str, Repository] = {}
        for repo in self.named(to_anybody=to_anybody).values():
            seen.setdefault(repo.marker, repo)
        return list(seen.values())

    def among(self, repo_ids: Iterable[str] | None) -> list[Repository] | None:
        """The repositories of these names; None, for all there are, where none are named.

        :raises diskyard.errors.RepositoryNotConnected: one is not connected.
        """
        return None if repo_ids is None else [self.get(repo_id) for repo_id in repo_ids]

    def by_marker(self, marker: str, *, to_anybody: bool = False) -> Repository | None:
        """The connected place with this marker; as of :meth:`named`."""
        repos = self.places(to_anybody=to_anybody)
        return next((repo for repo in repos if repo.marker == marker), None)

    # -- looking for images --------------------------------------------------------------

    def find(
        self,
        image_id: str,
        options: Options,
        first_repo: Repository | None = None,
        known: Mapping[str, State] | None = None,
    ) -> tuple[Repository, State, Image]:
        """The image with this id that verbs return, and where it is.

        Looked for in ``first``, then in the others in the order of their connection;
        ``participatingRepositories`` narrows that, and a hint names the only place. A
        repository that does not answer is skipped. One where the image is whole is
        preferred to one where it cannot be read, or is not complete. Of a Snapshot that is not
        whole in ``first`` all that are searched must have the same: an id alone says nothing of bytes.

        :param known: the newest states that were read just now, by the markers of their repositories.
        :raises diskyard.errors.ImageNotFound: names the repositories searched.
        :raises diskyard.errors.RepositoryUnavailable: it is in none of those that answered, and
            some did not, which are named.
        :raises diskyard.errors.ImageIdInUse: two of those searched have different Snapshots of this id.
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
        """Where to look, one after the other: what is not asked for is not connected either."""
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
    """Do not choose between two images of one id: which one is meant only the caller knows."""
    if found is None or (why := why_another(found[2], image)) is None:
        return
    raise errors.ImageIdInUse(
        f"Repositories {found[0].repo_id} and {repo.repo_id} have different images under the id "
        f"{image.id}: in the latter {why}.",
        advice="Select one of them with imageHints, or remove the other.",
        imageId=image.id,
    )


def _is_alias(repo: Repository, storage: Storage) -> bool:
    """Whether a place is that of another connection; one whose history was replaced lends its log to none."""
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
