"""The page of the API: complete, and safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest

from diskyard.http import openapi, reference
from diskyard.service import VERBS

VOID = {"meta", "br"}
HOSTILE = "</style><script>alert(1)</script>'\"&`<b>`"


class Reader(HTMLParser):
    """What a page is made of; it must be well formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.codes: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if self.open[-2:] == ["pre", "code"]:
            self.codes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open[-2:] == ["pre", "code"]:
            self.codes[-1] += data


@pytest.fixture(scope="module")
def page() -> str:
    return reference.encoded().decode()


def test_it_needs_nothing_from_elsewhere_and_no_script(page: str) -> None:
    found = Reader(page)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "form", "base", "svg"}
    links = {value for name, value in found.attributes if name in ("href", "src")}
    targets = {f"#{value}" for name, value in found.attributes if name == "id"}
    assert links <= targets | {"/openapi.json"}
    names = {name for name, _ in found.attributes}
    assert names == {"lang", "charset", "name", "content", "class", "id", "href"}
    assert "url(" not in page
    assert "@import" not in page


def test_its_style_is_the_one_that_its_policy_allows(page: str) -> None:
    style = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert len(style) == 1
    assert f"style-src 'sha256-{digest}'" in reference.CONTENT_SECURITY_POLICY
    assert reference.CONTENT_SECURITY_POLICY.startswith("default-src 'none';")


def test_every_verb_is_there_with_its_parameters_and_examples(page: str) -> None:
    found = Reader(page)
    ids = {value for name, value in found.attributes if name == "id"}
    assert set(VERBS) <= ids
    text = " ".join(found.text)
    for verb in VERBS.values():
        for name in openapi.document()["components"]["schemas"][verb.request.__name__]["properties"]:
            assert name in text
    bodies: list[Any] = []
    for code in found.codes:
        words = shlex.split(code)
        if "--json" in words:
            bodies.append((words[3].rpartition("/")[2], json.loads(words[-1])))
    asked = [(name, example.request) for name, verb in VERBS.items() for example in verb.examples]
    assert sorted(bodies, key=str) == sorted(asked, key=str)


def hostile(value: Any) -> Any:
    """A document whose every text that people read is an attempt to break out of the page."""
    if isinstance(value, dict):
        return {
            key: HOSTILE if key in ("summary", "description", "title", "advice") else hostile(inner)
            for key, inner in value.items()
        }
    return [hostile(inner) for inner in value] if isinstance(value, list) else value


def test_whatever_the_document_says_is_text() -> None:
    document = openapi.document()
    evil = hostile({**document, "components": {}, "tags": []})
    evil["components"] = document["components"]
    evil["tags"] = [{**tag, "description": HOSTILE} for tag in document["tags"]]
    found = Reader(reference.page(evil))
    assert "script" not in found.tags
    assert "b" not in found.tags
    assert HOSTILE.replace("`", "") in "".join(found.text)
