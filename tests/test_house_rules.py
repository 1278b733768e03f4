"""Rules that reviews would otherwise repeat. Each failure names file and line."""

from __future__ import annotations

import ast
import copy
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.testing.fault_injection import Call

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "diskyard"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

#: Calls that change the file system or make it durable: methods of the door to the host alone.
FILE_CHANGES = {
    "copy_file_range", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "mkfifo", "mknod",
    "open", "posix_fallocate", "pwrite", "remove", "removedirs", "rename", "renames", "replace", "rmdir",
    "sendfile", "symlink", "sync", "truncate", "unlink", "write",
}  # fmt: skip
PROGRAM_STARTS = re.compile(r"(exec|spawn|posix_spawn|fork)\w*|popen|system")
PROGRAM_MODULES = {"pty", "subprocess"}
#: They write files behind the door's back; a repository in memory has its bytes in a temporary folder.
FILE_MODULES = {"shutil", "tempfile"}
#: Calls that ask the file system: methods of the door too, so that they can be failed, hung and counted.
FILE_READS = {
    "access", "fstat", "fstatvfs", "getxattr", "listdir", "lseek", "lstat", "pread", "preadv", "read",
    "scandir", "stat", "statvfs", "walk",
}  # fmt: skip
PATH_READS = {"exists", "getmtime", "getsize", "isdir", "isfile", "islink", "ismount", "lexists", "realpath"}
#: What these read is this host's own (configuration, standard streams), never a repository's storage.
OF_THIS_HOST = ("cli", "client", "daemon", "settings.py")
PATH_CHANGES = {"hardlink_to", "symlink_to", "touch", "unlink", "write_bytes", "write_text"}
WRITING_MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]+")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def in_package(path: Path, *packages: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] in packages


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def found(paths: list[Path], rule: Callable[[ast.Call], bool]) -> list[str]:
    return [where(path, call.lineno) for path in paths for call in calls(path) if rule(call)]


def outside_the_door() -> list[Path]:
    return [path for path in SOURCES if not in_package(path, "host", "testing")]


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_nothing_is_left_unfinished() -> None:
    left = []
    for path in [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT and UNFINISHED.search(token.string):
                    left.append(where(path, token.start[0]))
    assert left == []


def test_no_shell() -> None:
    def gives_shell(call: ast.Call) -> bool:
        return any(
            word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            for word in call.keywords
        )

    assert found(SOURCES, gives_shell) == []


def is_call_of_os(call: ast.Call, names: Callable[[str], bool]) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "os"
        and names(function.attr)
    )


def test_the_file_system_is_changed_in_host_only() -> None:
    assert found(outside_the_door(), lambda call: is_call_of_os(call, FILE_CHANGES.__contains__)) == []


def test_functions_of_os_are_called_by_their_full_name() -> None:
    # Else the other rules here would not see them.
    short = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
            renamed = isinstance(node, ast.Import) and any(a.name == "os" and a.asname for a in node.names)
            if from_os or renamed:
                short.append(where(path, getattr(node, "lineno", 0)))
    assert short == []


def test_path_methods_that_change_the_file_system_are_not_used_elsewhere() -> None:
    def changes(call: ast.Call) -> bool:
        return isinstance(call.func, ast.Attribute) and call.func.attr in PATH_CHANGES

    # The door to the host has a method `unlink` of its own, which is how others remove a name.
    def is_door(call: ast.Call) -> bool:
        return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value).endswith("files")

    assert found(outside_the_door(), lambda call: changes(call) and not is_door(call)) == []


def test_files_are_opened_for_writing_in_host_only() -> None:
    def opens_for_writing(call: ast.Call) -> bool:
        is_builtin = isinstance(call.func, ast.Name) and call.func.id == "open"
        is_method = isinstance(call.func, ast.Attribute) and call.func.attr in ("open", "fdopen")
        if not (is_builtin or is_method):
            return False
        given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        # A mode that is not written out cannot be judged here, and is rare enough to be refused.
        modes = [word.value for word in given if isinstance(word, ast.Constant)]
        return any(isinstance(mode, str) and WRITING_MODE.fullmatch(mode) for mode in modes)

    assert found(outside_the_door(), opens_for_writing) == []


def test_storage_is_read_in_host_only() -> None:
    def reads(call: ast.Call) -> bool:
        words = ast.unparse(call.func).split(".")
        of_path = words[:2] == ["os", "path"] and words[-1] in PATH_READS
        return words == ["open"] or of_path or is_call_of_os(call, FILE_READS.__contains__)

    paths = [path for path in outside_the_door() if not in_package(path, *OF_THIS_HOST)]
    assert found(paths, reads) == []


def test_calls_that_only_read_are_known_to_whoever_makes_them_fail() -> None:
    # Else they would fail as calls do that have changed something.
    tree = ast.parse((PACKAGE / "host" / "reading.py").read_text(encoding="utf-8"))
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    reads = [
        node.name for node in methods if any(ast.unparse(d) == "storage_call" for d in node.decorator_list)
    ]
    assert len(reads) > 20
    assert [name for name in reads if not Call(name, "").reads] == []


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno


def test_programs_are_started_in_host_only() -> None:
    def starts(call: ast.Call) -> bool:
        return is_call_of_os(call, lambda name: PROGRAM_STARTS.fullmatch(name) is not None)

    assert found(outside_the_door(), starts) == []


def test_modules_that_start_programs_or_write_files_are_imported_in_host_only() -> None:
    wrong = []
    for path in outside_the_door():
        in_memory = path.is_relative_to(PACKAGE / "storage" / "memory")
        forbidden = PROGRAM_MODULES if in_memory else PROGRAM_MODULES | FILE_MODULES
        for name, line in imported_modules(path):
            if name.partition(".")[0] in forbidden:
                wrong.append(where(path, line))
    assert wrong == []


def test_every_package_says_what_it_is() -> None:
    folders = {parent for path in SOURCES for parent in path.parents if parent.is_relative_to(PACKAGE)}
    silent = []
    for folder in sorted(folders):
        init = folder / "__init__.py"
        if not init.exists() or not ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))):
            silent.append(str(folder.relative_to(ROOT)))
    assert silent == []


# -- errors: the classes, the table in their docstring and docs/errors.md say the same ----


def as_classes_say() -> list[tuple[str, int, int]]:
    return [(name, error.http_status, error.exit_status) for name, error in errors.CODES.items()]


def test_every_error_class_is_in_the_table_of_codes() -> None:
    def below(error: type[errors.DiskyardError]) -> Iterator[type[errors.DiskyardError]]:
        for subclass in error.__subclasses__():
            if subclass.__module__ == errors.__name__:
                yield subclass
            yield from below(subclass)

    unknown = {errors.UnknownOutcome, *map(errors.unknown_outcome, errors.CODES.values())}
    assert set(below(errors.DiskyardError)) - unknown == set(errors.CODES.values())
    assert all(name == error.__name__ for name, error in errors.CODES.items())


@pytest.mark.parametrize("kind", errors.CODES.values(), ids=errors.CODES)
def test_an_unknown_outcome_is_told_as_an_error_of_its_code(kind: type[errors.DiskyardError]) -> None:
    known, unknown = kind("Why.", imageId="i"), errors.unknown_outcome(kind)("Why.", imageId="i")
    assert isinstance(unknown, kind)
    assert not isinstance(known, errors.UnknownOutcome)
    assert unknown.to_json() == {**known.to_json(), "outcome": "unknown"}
    assert (unknown.http_status, unknown.exit_status) == (known.http_status, known.exit_status)
    again = copy.copy(unknown)
    assert (type(again), again.to_json()) == (type(unknown), unknown.to_json())


def test_exit_statuses_differ() -> None:
    statuses = [error.exit_status for error in errors.CODES.values()]
    assert len(set(statuses)) == len(statuses)
    # 1 and 2 are the command line's own; from 126 on they are the shell's.
    assert all(2 < status < 126 for status in statuses)


def test_the_docstring_of_errors_lists_every_code() -> None:
    rows = re.findall(r"^([A-Z]\w+) +(\d{3}) +(\d+)$", errors.__doc__ or "", re.MULTILINE)
    assert [(code, int(http), int(status)) for code, http, status in rows] == as_classes_say()


@pytest.fixture(scope="module")
def documented() -> list[list[str]]:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if "---" not in row[0]][1:]


def test_docs_list_exactly_the_codes(documented: list[list[str]]) -> None:
    assert [(row[0].strip("`"), int(row[1]), int(row[2])) for row in documented] == as_classes_say()


def test_docs_say_which_errors_pass_by_themselves(documented: list[list[str]]) -> None:
    retryable = {row[0].strip("`") for row in documented if row[3] == "yes"}
    assert retryable == {name for name, error in errors.CODES.items() if error.retryable}


def test_docs_give_meaning_and_advice_as_the_classes_do(documented: list[list[str]]) -> None:
    for code, _http, _exit, _retry, meaning, advice in documented:
        error = errors.CODES[code.strip("`")]
        assert meaning == (error.__doc__ or "").partition("\n")[0], code
        assert advice == error.default_advice, code
