"""Every hostile or odd image is refused, or imported as exactly its own bytes, within limits."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from diskyard.mover.interface import ImportFormat
from diskyard.testing.effort import Effort
from diskyard.testing.hostile_images.cases import SIZE_BYTES, STRETCHES, Case
from diskyard.testing.hostile_images.corpus import all_cases, with_random_changes
from diskyard.testing.hostile_images.judge import ImportJudge
from diskyard.testing.hostile_images.picture import picture_of_file
from tests.conftest import Tally

CLASS = "hostile images"
#: How many cases of each format are tried in scripts/test; which, the seed decides.
SAMPLE = {"raw": 45, "qcow2": 80, "vmdk": 50, "vdi": 42, "vhdx": 42}
MUTANTS = {"qcow2": 14, "vmdk": 11, "vdi": 9, "vhdx": 9}
THOROUGH_MUTANTS = 1000
READ_MOST_BYTES = 1 << 30


@pytest.mark.parametrize("format", SAMPLE)
def test_named_images(format: str, folder: Path, effort: Effort, tally: Tally) -> None:
    """Nothing else is opened, nothing is left, and memory and time are bounded."""
    tally(CLASS)
    cases = [case for case in all_cases(format) if effort.thorough or not case.is_slow]
    assert len({case.name for case in cases}) == len(cases)
    cases = effort.sample(cases, SAMPLE[format], CLASS, format)
    wrong: dict[str, list[str]] = {}
    codes = {True: 0, False: 0}
    runs = 0
    with ImportJudge(folder / "judge") as judge:
        for index, case in enumerate(cases):
            for stepwise in (False, True) if effort.thorough else (index % 2 == 0,):
                outcome = judge.judge(case, stepwise=stepwise)
                runs += 1
                codes[outcome.code is None] += 1
                if outcome.wrong:
                    wrong[f"{case.name}, stepwise {stepwise}"] = outcome.wrong
    assert wrong == {}
    assert all(codes.values())  # some were refused, and some were imported
    tally(CLASS, cases=len(cases), runs=runs)


@pytest.mark.parametrize("format", MUTANTS)
def test_random_changes(format: ImportFormat, folder: Path, effort: Effort, tally: Tally) -> None:
    """What is imported is what qemu-img reads of a copy that it is told the format of."""
    tally(CLASS)
    raw, honest = folder / "disk", folder / "honest"
    with raw.open("wb") as file:
        for offset, data in STRETCHES.items():
            file.seek(offset)
            file.write(data)
        file.truncate(SIZE_BYTES)
    _run("convert", "-f", "raw", "-O", format, str(raw), str(honest))
    count = THOROUGH_MUTANTS if effort.thorough else MUTANTS[format]
    wrong: dict[int, list[str]] = {}
    with ImportJudge(folder / "judge") as judge:
        for number in range(count):
            path = judge.site.new(f"mutant-{number}")
            path.write_bytes(
                with_random_changes(honest.read_bytes(), format, effort.random(CLASS, format, number))
            )
            case = _as_qemu_reads(path, format, folder / "read")
            outcome = judge.judge_file(case, path, stepwise=number % 2 == 0)
            path.unlink()
            if outcome.wrong:
                wrong[number] = outcome.wrong
    assert wrong == {}
    tally(CLASS, cases=count, runs=count)


def _as_qemu_reads(path: Path, format: ImportFormat, out: Path) -> Case:
    """What must come of a mutant: as QEMU reads it, or a refusal.

    No mutant has data beyond :data:`READ_MOST_BYTES`, however long it says it is.
    """
    told = _limited("info", "-f", format, "--output=json", str(path))
    size_bytes = json.loads(told.stdout)["virtual-size"] if told.returncode == 0 else 0
    read_bytes = min(size_bytes, READ_MOST_BYTES)
    source = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    part = {"driver": "raw", "size": read_bytes, "file": source}
    done = _limited("convert", "-O", "raw", "json:" + json.dumps(part), str(out)) if read_bytes else told
    holds = picture_of_file(out, size_bytes) if read_bytes and done.returncode == 0 else None
    out.unlink(missing_ok=True)
    return Case("mutant", format, lambda *_: None, holds, may_be_refused=True)


def _limited(*words: str) -> subprocess.CompletedProcess[bytes]:
    limits = ["prlimit", "--as=1073741824", "--cpu=20", "--fsize=4294967296", "--core=0", "--"]
    return subprocess.run([*limits, "qemu-img", *words], capture_output=True, check=False)


def _run(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)
