"""Contracts for import-linter that say what a layer may import, rather than what it may not.

A package that is added later is then outside until it is named. import-linter's own types
``forbidden`` and ``protected`` also refuse names that do not exist yet; here a missing name
is a warning, so that a contract can be written before the package.
"""

from __future__ import annotations

from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def _names(field: object) -> list[str]:
    """The value of a field: import-linter puts it where the class has the field itself."""
    return cast("list[str]", field)


def _within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _link(graph: ImportGraph, importer: str, imported: str) -> str:
    details = graph.get_import_details(importer=importer, imported=imported)
    lines = ", ".join(str(detail["line_number"]) for detail in details)
    return f"{importer} -> {imported} (l.{lines})"


class _Contract(Contract):
    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the imports that are not allowed, and the names that do not exist."""
        wrong: list[str] = []
        warnings: list[str] = []
        for subject in self.subjects():
            if subject in graph.modules:
                for module in sorted({subject, *graph.find_descendants(subject)}):
                    wrong += self.wrong_imports(graph, subject, module)
            else:
                warnings.append(f'"{self.name}": there is no {subject} yet')
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong}, warnings=warnings)

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the imports that are not allowed."""
        for line in check.metadata["wrong"]:
            output.print_error(f"- {line}", bold=False)
        output.new_line()

    def subjects(self) -> list[str]:
        raise NotImplementedError

    def wrong_imports(self, graph: ImportGraph, subject: str, module: str) -> list[str]:
        raise NotImplementedError


class OnlyImports(_Contract):
    """The sources import themselves, the allowed modules, and nothing else of the package.

    :param source_modules: packages or modules; each counts with all that is below it.
    :param allowed_modules: what every source may import, with all that is below it.
    :param forbidden_outside: modules of other distributions, or of the standard library,
        that no source may import.
    """

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.ListField(subfield=fields.StringField())
    forbidden_outside = fields.ListField(subfield=fields.StringField(), default=[])

    def subjects(self) -> list[str]:
        """The sources."""
        return _names(self.source_modules)

    def wrong_imports(self, graph: ImportGraph, subject: str, module: str) -> list[str]:
        """What ``module``, of the source ``subject``, imports and may not."""
        root = subject.partition(".")[0]
        wrong = []
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if _within(imported, [root]):
                allowed = _within(imported, [subject, *_names(self.allowed_modules)])
            else:
                allowed = not _within(imported, _names(self.forbidden_outside))
            if not allowed:
                wrong.append(_link(graph, module, imported))
        return wrong


class OnlyImportedBy(_Contract):
    """The protected modules are imported by the allowed importers, and within themselves.

    :param protected_modules: packages or modules; each counts with all that is below it.
    :param allowed_importers: who may import them, with all that is below it.
    """

    protected_modules = fields.ListField(subfield=fields.StringField())
    allowed_importers = fields.ListField(subfield=fields.StringField())

    def subjects(self) -> list[str]:
        """The protected modules."""
        return _names(self.protected_modules)

    def wrong_imports(self, graph: ImportGraph, subject: str, module: str) -> list[str]:
        """Who imports ``module``, of the protected ``subject``, and may not."""
        allowed = [subject, *_names(self.allowed_importers)]
        importers = sorted(graph.find_modules_that_directly_import(module))
        return [_link(graph, name, module) for name in importers if not _within(name, allowed)]
