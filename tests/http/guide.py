"""Runs the examples of a page as they are written, and compares what they print."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ELIDED = "…"
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Block:
    """One example.

    :param line: where it begins in the page.
    :param expected: what it prints, if the page shows that.
    :param expects_json: whether that is compared as JSON.
    """

    line: int
    script: str
    expected: str | None = None
    expects_json: bool = False


def blocks_of(page: str) -> list[Block]:
    """The examples of a page, in their order.

    A block of JSON or text belongs to the example right before it.
    """
    found: list[Block] = []
    for line, kind, text, follows in _fenced(page):
        if kind == "sh":
            found.append(Block(line, text))
        elif kind in ("json", "text"):
            assert found, f"line {line}: there is no example before this"
            assert follows, f"line {line}: it does not follow its example"
            assert found[-1].expected is None, f"line {line}: the example has its output already"
            found[-1] = Block(found[-1].line, found[-1].script, text, kind == "json")
        else:
            raise AssertionError(f"line {line}: a block of {kind or 'no kind'}")
    return found


def _fenced(page: str) -> Iterator[tuple[int, str, str, bool]]:
    """Line, kind and text of every fenced block, and whether only empty lines are before it."""
    begun, kind, inside, follows = 0, "", False, False
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("```"):
            if inside:
                yield begun, kind, "\n".join(lines) + "\n", follows
                follows = True
            else:
                begun, kind, lines = number, line.removeprefix("```"), []
            inside = not inside
        elif inside:
            lines.append(line)
        elif line.strip():
            follows = False
    assert not inside, f"line {begun}: the block does not end"


def run(blocks: list[Block], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Run examples one after the other in one shell, in a folder; what each printed.

    The shell ends at the first command that fails, as one who follows the page would.
    """
    script = ["set -eu -o pipefail", "trap 'kill $(jobs -p) 2>/dev/null || :' EXIT"]
    for number, block in enumerate(blocks):
        script.append(f"echo 'line {block.line}' > at")
        script.append(f"{{\n{block.script}}} > printed-{number}")
    path = folder / "guide.sh"
    path.write_text("\n".join(script) + "\n")
    words = ["timeout", "--kill-after=5", str(TIMEOUT_S), "bash", str(path)]
    ended = subprocess.run(
        words,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = [
        (folder / f"printed-{number}").read_text()
        for number in range(len(blocks))
        if (folder / f"printed-{number}").exists()
    ]
    at = (folder / "at").read_text().strip()
    assert ended.returncode == 0, f"{at}: exit status {ended.returncode}\n{ended.stdout}\n{printed[-1]}"
    return printed


def mismatch(block: Block, printed: str) -> str | None:
    """How what an example printed differs from what the page shows; None if it does not."""
    if block.expected is None:
        same = printed == ""
    elif block.expects_json:
        same = matches_json(json.loads(block.expected), json.loads(printed))
    else:
        same = matches_text(block.expected, printed)
    return None if same else f"line {block.line}: the page shows\n{block.expected}\nand this came:\n{printed}"


def matches_text(shown: str, came: str) -> bool:
    """Whether text is as shown, where ``…`` stands for anything, and ends of lines at the end for none."""
    parts = (re.escape(part) for part in shown.rstrip("\n").split(ELIDED))
    return re.fullmatch(".*".join(parts), came.rstrip("\n"), re.DOTALL) is not None


def matches_json(shown: Any, came: Any) -> bool:
    """Whether JSON is as shown: ``"…"`` stands for any value, or for more items or members."""
    if shown == ELIDED:
        return True
    if isinstance(shown, dict) and isinstance(came, dict):
        names = set(shown) - {ELIDED}
        complete = names <= set(came) if ELIDED in shown else names == set(came)
        return complete and all(matches_json(shown[name], came[name]) for name in names)
    if isinstance(shown, list) and isinstance(came, list):
        if shown[-1:] == [ELIDED]:
            shown, came = shown[:-1], came[: len(shown) - 1]
        return len(shown) == len(came) and all(map(matches_json, shown, came))
    if isinstance(shown, str) and isinstance(came, str):
        return matches_text(shown, came)
    return type(shown) is type(came) and bool(shown == came)
