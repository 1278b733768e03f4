"""The prose of the OpenAPI document."""

from __future__ import annotations

DESCRIPTION = """\
Diskyard keeps disk images of KVM hosts in storage repositories. A verb returns when its change is
committed to the storage; bytes move afterwards, in tasks. `checkStorageRepository` lists all
unfinished work, and any host can finish it with `fixStorageRepository`.

**Calls.** Every verb is `POST /v1/<verb>` with a JSON object of its parameters and
`Content-Type: application/json`. A missing body counts as an empty object. Unknown parameters are
refused. The answer is one JSON value, or `null` if the verb returns nothing.

**Errors** are `application/problem+json`. An unknown verb or path gives 404. A method that a path does
not support gives 405. Both have the code `InvalidParameter`. A request whose end cannot be determined
gives 400. Input that is not HTTP gives 400 in plain text. After both, the connection is closed.

**Repeating.** Every verb that only reads can be repeated, and so can every verb whose second call
changes nothing: connecting, removing a tracker, preparing, tearing down, setting. A call that makes an
image can be repeated if it has `newImageId`: the same id with the same request gives the existing
image. A call whose error has `outcome: unknown` may have taken effect.

**Who may call.** Over the Unix socket, anyone who may open it. Over TCP, which is always TLS, a call
needs a bearer token with the scope that the verb names.
"""

BEARER = """\
A token made with `diskyard token create`. Its scope is `read`, `write` (which includes read) or
`admin` (which includes both). It may be bound to some repoIds. The Unix socket needs no token.
"""
