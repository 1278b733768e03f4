"""The contracts of the layers see what they should: on graphs made by hand."""

from __future__ import annotations

import pytest
from grimp import ImportGraph

from scripts.import_contracts import OnlyImportedBy, OnlyImports


@pytest.fixture
def graph() -> ImportGraph:
    made = ImportGraph()
    for name in ("yard", "yard.errors", "yard.model", "yard.model.state", "yard.host", "yard.host.files"):
        made.add_module(name)
    for name in ("os", "re"):
        made.add_module(name, is_squashed=True)
    for importer, imported in (
        ("yard.model", "yard.model.state"),
        ("yard.model.state", "yard.errors"),
        ("yard.model.state", "re"),
    ):
        made.add_import(importer=importer, imported=imported, line_number=1, line_contents="")
    return made


def only_imports() -> OnlyImports:
    options = {
        "source_modules": ["yard.model"],
        "allowed_modules": ["yard.errors"],
        "forbidden_outside": ["os"],
    }
    return OnlyImports("pure", {}, options)


def test_what_is_allowed_passes(graph: ImportGraph) -> None:
    assert only_imports().check(graph, verbose=False).kept


@pytest.mark.parametrize("imported", ["yard.host", "yard.host.files", "yard", "os"])
def test_what_is_not_named_is_found(graph: ImportGraph, imported: str) -> None:
    graph.add_import(importer="yard.model.state", imported=imported, line_number=7, line_contents="")
    check = only_imports().check(graph, verbose=False)
    assert not check.kept
    assert check.metadata["wrong"] == [f"yard.model.state -> {imported} (l.7)"]


def test_a_source_that_does_not_exist_is_a_warning(graph: ImportGraph) -> None:
    options = {"source_modules": ["yard.planner"], "allowed_modules": []}
    check = OnlyImports("later", {}, options).check(graph, verbose=False)
    assert check.kept
    assert check.warnings == ['"later": there is no yard.planner yet']


def test_only_the_named_import_a_protected_module(graph: ImportGraph) -> None:
    options = {"protected_modules": ["yard.host"], "allowed_importers": ["yard.errors"]}
    contract = OnlyImportedBy("door", {}, options)
    graph.add_import(importer="yard.host", imported="yard.host.files", line_number=1, line_contents="")
    graph.add_import(importer="yard.errors", imported="yard.host", line_number=2, line_contents="")
    assert contract.check(graph, verbose=False).kept
    graph.add_import(importer="yard.model", imported="yard.host.files", line_number=3, line_contents="")
    check = contract.check(graph, verbose=False)
    assert check.metadata["wrong"] == ["yard.model -> yard.host.files (l.3)"]
