"""What the OpenAPI document says in words."""

from __future__ import annotations

DESCRIPTION = """\
Diskyard keeps disk images of KVM hosts in storage repositories. A verb returns when it is
committed to the storage; bytes move afterwards, in tasks. Whatever is left unfinished is listed by
`checkStorageRepository`, and any host can finish it with `fixStorageRepository`.

**Calls.** Every verb is `POST /v1/<verb>` with a JSON object of its parameters and
`Content-Type: application/json`; no body at all is an empty object. Unknown parameters are refused.
The answer is one JSON value, `null` where a verb answers nothing.

**Errors** are `application/problem+json`. A verb that there is not answers 404, and so does a path; a
method that a path does not have answers 405; both with the code `InvalidParameter`. A request of which
it is not certain where it ends answers 400, and so does, in plain text, what is no HTTP at all; then the
connection is closed.

**Repeating.** All verbs that only read can be repeated, and so can all those whose second time changes
nothing: connecting, removing a tracker, preparing, tearing down, setting. A call that makes an image
can be repeated if it has `newImageId`: the same id and request is answered with the image that is
there. An error with `outcome: unknown` was perhaps done.

**Who may call.** Over the Unix socket whoever may open it. Over TCP, which is always TLS, a bearer
token is needed, of the scope that the verb names.
"""

BEARER = """\
A token made with `diskyard token create`. Its scope is `read`, `write`, which includes read, or
`admin`, which includes both; it may be bound to some repoIds. Over the Unix socket no token is needed.
"""
