"""Bearer tokens: who may call what over TCP. Only hashes of their secrets are kept."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec

from diskyard import errors
from diskyard.daemon.newest_time import NewestTime
from diskyard.daemon.revocations import Revocation, Revocations, no_room
from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS
from diskyard.model.options import RepoId, wire_name
from diskyard.settings import Settings

Scope = Literal["read", "write", "admin"]
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LASTS_LIMIT_S = 100 * 365 * 86_400

_ID = re.compile("[0-9a-f]{8}")
_TEXT = re.compile("dy_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_SECRET_BYTES = 32
_LIMIT_BYTES = 16 << 20
_NOBODYS_SHA256 = hashlib.sha256(secrets.token_bytes(_SECRET_BYTES)).hexdigest()

# The form in which the clock writes times, so that their texts sort as the times do.
_Time = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]


class Token(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename=wire_name,
):
    """What is known of a token, which does not include its secret.

    :param token_id: the part of the token that is not secret.
    :param name: the operator's name for it, which the audit trail shows.
    :param scope: read, write or admin; each includes the ones before it.
    :param repositories: the repoIds that it is bound to; None for all.
    :param transfer_folders: the only directories for its imports and exports; None for the configured.
    """

    token_id: Annotated[str, msgspec.Meta(pattern=f"^{_ID.pattern}$")]
    name: Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}$")]
    scope: Scope
    repositories: tuple[RepoId, ...] | None
    created_at: _Time
    expires_at: _Time | None
    transfer_folders: tuple[str, ...] | None = None


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token in the file."""

    token: Token
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Tokens:
    """The tokens of one host. Several threads may use them, and other processes at the same time.

    :param folder: the state directory; made if it does not exist.
    :param host: by default this machine.
    """

    def __init__(self, folder: str, host: Host | None = None) -> None:
        self._host = host or Host.real()
        self._settings = Settings(self._host, folder)
        self._path = os.path.join(folder, "tokens.json")
        self._revocations = Revocations(self._host, folder)
        self._time = NewestTime(self._host, folder)
        self._read: tuple[str, dict[str, _Kept]] | None = None

    def verify(self, text: str) -> Token | None:
        """The token that a caller sends; None if it is not valid, is revoked, or has expired.

        The time that this takes reveals nothing about the secrets, or about which ids exist.

        :raises diskyard.errors.StorageError: the file cannot be read, so nobody may call.
        """
        kept, revoked = self._kept(), self._revoked()
        found = _TEXT.fullmatch(text)
        token_id, secret = found.groups() if found else ("", "")
        one = kept.get(token_id)
        expected = _NOBODYS_SHA256 if one is None else one.sha256
        if not hmac.compare_digest(_sha256(secret), expected) or one is None:
            return None
        return None if token_id in revoked or self.has_expired(one.token) else one.token

    def has_expired(self, token: Token) -> bool:
        """Whether the token has expired, even if the clock was set back since."""
        if token.expires_at is None:
            return False
        with _os_errors("reading the newest time that was kept"):
            return self._time.now() >= token.expires_at

    def all(self) -> list[Token]:
        """Every token that is not revoked, in the order in which they were made."""
        return [one.token for one in self._live().values()]

    def revoked(self) -> list[Revocation]:
        """The tokens that were revoked most recently, by whom and when; the oldest first."""
        return list(self._revoked().values())

    def create(
        self,
        name: str,
        scope: Scope,
        repositories: tuple[str, ...] | None = None,
        lasts_s: int | None = None,
        transfer_folders: tuple[str, ...] | None = None,
    ) -> tuple[Token, str]:
        """Make a token, durably.

        :param repositories: the repoIds that it is bound to; None for all.
        :param lasts_s: seconds until it expires; None for never.
        :param transfer_folders: the only directories for its imports and exports; None for the configured.
        :returns: what is known of it, and the token itself, which cannot be shown again.
        :raises diskyard.errors.InvalidParameter: the name is invalid or taken, or another parameter is out of
            range.
        """
        self._require_valid(name, repositories, lasts_s, transfer_folders)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        with self._changing() as kept:
            # A token that could not be revoked on a full disk must not be made.
            self._clear_up(kept)
            if any(one.token.name == name for one in kept.values()):
                raise errors.InvalidParameter(
                    f"A token {name} exists already.", advice="Revoke it first, or choose another name."
                )
            token_id = secrets.token_hex(4)
            while token_id in kept or token_id in self._revoked():
                token_id = secrets.token_hex(4)
            now = self._host.clock.now()
            token = Token(
                token_id=token_id,
                name=name,
                scope=scope,
                repositories=repositories,
                created_at=now,
                expires_at=None if lasts_s is None else _later(self._time.now(), lasts_s),
                transfer_folders=transfer_folders,
            )
            kept[token_id] = _Kept(token, _sha256(secret))
        return token, f"dy_{token_id}_{secret}"

    def prepare_to_revoke(self) -> None:
        """Make space for revoking the existing tokens, also those that an earlier version made.

        :raises diskyard.errors.DiskyardError: there is no space, or the tokens cannot be read.
        """
        if self.all():
            with self._settings.locked(), _os_errors("having room to revoke tokens"):
                self._clear_up(self._live())

    def revoke(self, which: str, by: str = "") -> Token:
        """Revoke a token, durably: from now on nobody can use it. That needs no space on the disk.

        :param which: its id or its name.
        :param by: the user who revokes it, which is recorded.
        :raises diskyard.errors.InvalidParameter: there is no such token.
        """
        with self._settings.locked():
            live = self._live()
            one = next((o.token for o in live.values() if which in (o.token.token_id, o.token.name)), None)
            if one is None:
                raise errors.InvalidParameter(
                    f"There is no token {which!r:.80}.", advice="List the tokens (diskyard token list)."
                )
            with contextlib.suppress(OSError):  # the disk may be full, but space was prepared before
                self._clear_up(live)
            now = self._host.clock.now()
            mark = Revocation(token_id=one.token_id, name=one.name, revoked_at=now, revoked_by=by)
            try:
                self._revocations.mark(mark)
            except OSError as error:
                raise no_room(error) from error
            with contextlib.suppress(OSError):  # the mark is enough; the next change cleans up
                self._clear_up(self._live())
            return one

    def _require_valid(
        self,
        name: str,
        repositories: tuple[str, ...] | None,
        lasts_s: int | None,
        transfer_folders: tuple[str, ...] | None,
    ) -> None:
        if NAME.fullmatch(name) is None or _ID.fullmatch(name) is not None:
            raise errors.InvalidParameter(
                "A token's name has 1-64 letters, digits and . _ @ -, and begins with a letter or a digit. "
                "It must not be eight hexadecimal digits, because the ids of tokens are."
            )
        if repositories is not None and (
            not repositories or any(not key.isprintable() or not 1 <= len(key) <= 255 for key in repositories)
        ):
            raise errors.InvalidParameter("A token is bound to one or more valid repoIds, or to none at all.")
        if transfer_folders is not None and not all(
            os.path.isabs(folder) and folder.isprintable() for folder in transfer_folders
        ):
            raise errors.InvalidParameter(
                "A transfer directory must be an absolute path without control characters."
            )
        if lasts_s is not None and not 1 <= lasts_s <= LASTS_LIMIT_S:
            raise errors.InvalidParameter("A token must be valid for one second to 100 years.")

    @contextmanager
    def _changing(self) -> Iterator[dict[str, _Kept]]:
        """The tokens that are not revoked, to be changed. Other processes wait until they are written."""
        with self._settings.locked():
            kept = self._live()
            with _os_errors(f"writing {self._path}"):
                yield kept
                self._write(kept)

    def _write(self, kept: dict[str, _Kept]) -> None:
        self._host.files.replace(self._path, msgspec.json.encode(list(kept.values())), mode_bits=PRIVATE_BITS)

    def _clear_up(self, live: dict[str, _Kept]) -> None:
        """Remove revoked tokens from the file, and then make space for marks."""
        if len(live) < len(self._kept()):
            self._write(live)
        self._revocations.prepare()

    def _live(self) -> dict[str, _Kept]:
        """The tokens that are not revoked, by id."""
        revoked = self._revoked()
        return {key: one for key, one in self._kept().items() if key not in revoked}

    def _revoked(self) -> dict[str, Revocation]:
        try:
            return self._revocations.all()
        except OSError as error:
            raise errors.StorageError(
                f"The list of revoked tokens cannot be read, so no token is valid: {error}.",
                advice="Remove tokens.json and tokens.revoked, and make new tokens.",
            ) from error

    def _kept(self) -> dict[str, _Kept]:
        """The tokens in the file as it is now, by id."""
        try:
            # Taken before the file is read, so that the next call notices a change in between.
            seen = self._fingerprint()
            known = self._read
            if known is not None and known[0] == seen:
                return known[1]
            data = self._host.files.read(self._path, _LIMIT_BYTES)
            found = [] if data is None else msgspec.json.decode(data, type=list[_Kept])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise errors.StorageError(
                f"{self._path} cannot be read, so no token is valid: {error}.",
                advice="Put the file back from a backup, or remove it and make new tokens.",
            ) from error
        kept = {one.token.token_id: one for one in found}
        self._read = (seen, kept)
        return kept

    def _fingerprint(self) -> str:
        try:
            return self._host.files.fingerprint(self._path)
        except FileNotFoundError:
            return ""


@contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    """Turn the system's errors into Diskyard's."""
    try:
        yield
    except OSError as error:
        raise errors.from_os_error(error, doing) from error


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _later(now: str, lasts_s: int) -> str:
    at = datetime.fromisoformat(now) + timedelta(seconds=lasts_s)
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
