"""The main job of Diskyard on a real file system, as its users would do it.

Run by scripts/demo. Everything happens in one temporary folder, which is removed again,
also after Ctrl-C. Nothing that is said here is taken on trust from Diskyard: every image
is read back through QEMU's own tools, checked by e2fsck, and each of its files compared.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diskyard.testing.running_guest import StorageDaemonGuest, judge

MIB = 1 << 20
BLOCK_BYTES = 4096
TREE_LEAST_BYTES = 520 * MIB
LARGE_BYTES = 64 << 10
COMMAND = [sys.executable, "-m", "diskyard.cli"]
BOLD, DIM, GREEN, PLAIN = ("\033[1m", "\033[2m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 4

Manifest = dict[str, str]


def say(text: str) -> None:
    """A sentence for whoever watches."""
    print(f"  {text}", flush=True)


class Demo:
    """One run, in one folder, on two repositories and two hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin_s = time.monotonic()
        self.random = random.Random(2012)
        self.raw = folder / "tree.raw"
        self.expected: dict[str, Manifest] = {}
        self.rows: list[tuple[str, str]] = []

    # -- running things ----------------------------------------------------------------

    def environment(self, host: str) -> dict[str, str]:
        """The environment of one of the two hosts."""
        state = self.folder / f"state-{host}"
        return {**os.environ, "DISKYARD_HOST_ID": host, "DISKYARD_STATE_DIR": str(state)}

    def diskyard(self, *words: str, host: str = "host-1", quiet: bool = False) -> str:
        """Run the diskyard command, showing it and what it says."""
        if not quiet:
            print(f"{DIM}{host}${PLAIN} {BOLD}diskyard {' '.join(words)}{PLAIN}", flush=True)
        done = subprocess.run([*COMMAND, *words], env=self.environment(host), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"diskyard {' '.join(words)} failed:\n{done.stderr}")
        if not quiet:
            for line in done.stdout.splitlines()[:16]:
                print(f"    {line[:150]}", flush=True)
        return done.stdout

    def ask(self, *words: str, host: str = "host-1") -> Any:
        """Run a command with --json and return its answer."""
        return json.loads(self.diskyard(*words, "--json", host=host, quiet=True))

    def step(self, title: str) -> None:
        """Announce the next thing."""
        elapsed_s = time.monotonic() - self.begin_s
        print(f"\n{BOLD}{GREEN}[{elapsed_s:5.1f} s] {title}{PLAIN}", flush=True)

    # -- the data ---------------------------------------------------------------------

    def make_file_system(self) -> None:
        """An ext4 image of real files, without mounting anything."""
        tree = self.folder / "tree"
        gathered = 0
        for source, name in _large_files():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            gathered += source.stat().st_size
            if gathered >= TREE_LEAST_BYTES:
                break
        size_bytes = (gathered * 3 // 2 + 128 * MIB) // MIB * MIB
        _quietly(
            [
                "mke2fs",
                "-q",
                "-t",
                "ext4",
                "-b",
                str(BLOCK_BYTES),
                "-d",
                str(tree),
                str(self.raw),
                f"{size_bytes // 1024}k",
            ]
        )
        self.expected["tree"] = _manifest(tree)
        shutil.rmtree(tree)
        say(
            f"{len(self.expected['tree'])} files, {gathered // MIB} MiB, "
            f"in an ext4 image of {size_bytes // MIB} MiB"
        )

    def change_files(self, image: str, count: int, expected: str) -> int:
        """Write new contents into files of a disk, as its guest would; the bytes written."""
        manifest = dict(self.expected[expected])
        names = self.random.sample(sorted(manifest), len(manifest))
        commands: list[str] = []
        written = 0
        for name in names:
            blocks = _file_blocks(self.raw, name)
            if len(commands) >= count or blocks is None:
                if len(commands) >= count:
                    break
                continue
            first, length = blocks
            data = self.random.randbytes(length)
            source = self.folder / f"new-{len(commands)}"
            source.write_bytes(data + bytes(-length % BLOCK_BYTES))
            padded = source.stat().st_size
            commands.append(f"write -s {source} {first * BLOCK_BYTES} {padded}")
            manifest[name] = hashlib.blake2b(data).hexdigest()
            written += padded
        graph = self.ask("image", "prepare", image)["blockdev"]
        _quietly(["qemu-io", *[word for c in commands for word in ("-c", c)], "json:" + json.dumps(graph)])
        self.diskyard("image", "teardown", image, quiet=True)
        self.expected[expected] = manifest
        say(f"a guest rewrote {len(commands)} files of {image}: {written / MIB:.1f} MiB")
        return written

    def verify(self, image: str, expected: str) -> None:
        """Read an image through QEMU, check its file system, and compare every file."""
        graph = self.ask("image", "prepare", image, "--read-only")["blockdev"]
        copy = self.folder / f"verify-{image.replace('/', '-')}.raw"
        out = copy.with_suffix("")
        _quietly(["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(graph), str(copy)])
        self.diskyard("image", "teardown", image, quiet=True)
        _quietly(["e2fsck", "-fn", str(copy)])
        out.mkdir()
        _quietly(["debugfs", "-R", f"rdump / {out}", str(copy)])
        found = _manifest(out)
        shutil.rmtree(out)
        copy.unlink()
        if found != self.expected[expected]:
            wrong = {
                n
                for n in {*found, *self.expected[expected]}
                if found.get(n) != self.expected[expected].get(n)
            }
            raise SystemExit(f"{image}: {len(wrong)} files are not what they must be: {sorted(wrong)[:5]}")
        self.rows.append((image, f"e2fsck clean, {len(found)} files as they must be"))
        say(f"{GREEN}ok{PLAIN} {image}: e2fsck clean, {len(found)} files as they must be")

    # -- the story -----------------------------------------------------------------------

    def run(self) -> None:
        """All of it, in order."""
        self.step("A disk image from a real file tree")
        self.make_file_system()
        self.prepare_repositories()
        self.import_and_snapshot()
        copy2_bytes, changed = self.rfc_flow()
        self.kill_a_copy()
        self.keep_a_guest_running()
        self.step("Every image, read through QEMU")
        images = {
            "A/imageA": "imageA",
            "A/golden": "golden",
            "A/web-1": "web-1",
            "A/web-2": "golden",
            "B/imageA_copy1": "copy1",
            "B/imageA_copy2": "imageA",
            f"B/{self.golden_id}": "golden",
        }
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.verify, images, images.values()))
        freed = self.merge_the_middle()
        self.verify("A/web-1", "web-1")
        self.rows.append(
            ("imageA_copy2", f"stores {copy2_bytes / MIB:.1f} MiB for {changed / MIB:.1f} MiB of changes")
        )
        self.rows.append(("merging the middle", f"gave back {freed / MIB:.1f} MiB"))
        self.table()

    def prepare_repositories(self) -> None:
        """Two repositories, known to two hosts."""
        self.step("Two repositories, two hosts")
        for name in "AB":
            place = f"path={self.folder / ('repository-' + name)}"
            self.diskyard("repo", "create", "localfs-1.0", place)
            for host in ("host-1", "host-2"):
                self.diskyard(
                    "repo", "connect", name, "localfs-1.0", place, host=host, quiet=host == "host-2"
                )

    def import_and_snapshot(self) -> None:
        """Import it, snapshot it, and make two disks of the snapshot."""
        self.step("Import it as a VirtualDisk, snapshot it, make two disks from the snapshot")
        self.diskyard("image", "import", "A", str(self.raw), "--format", "raw", "--name", "imageA")
        self.golden_id = self.diskyard("snapshot", "create", "A/imageA", "--name", "golden").split()[0]
        for name in ("web-1", "web-2"):
            self.diskyard("disk", "create", "A", "--from", "A/golden", "--name", name)
        for name in ("imageA", "golden", "web-1"):
            self.expected[name] = self.expected["tree"]
        self.change_files("A/web-1", 40, "web-1")

    def rfc_flow(self) -> tuple[int, int]:
        """The flow of the RFC: copy, change, copy again as a difference, with no snapshot."""
        self.step("The RFC's flow: copy imageA, change it, copy the difference, no snapshot of it")
        self.change_files("A/imageA", 20, "imageA")
        self.diskyard("image", "copy", "A/imageA", "B", "--name", "imageA_copy1")
        self.expected["copy1"] = self.expected["imageA"]
        changed = self.change_files("A/imageA", 60, "imageA")
        self.diskyard("image", "copy", "A/imageA", "B", "--base", "B/imageA_copy1", "--name", "imageA_copy2")
        stored = int(self.ask("image", "show", "B/imageA_copy2")["exclusiveBytes"])
        say(f"the second copy stores {stored / MIB:.1f} MiB; {changed / MIB:.1f} MiB of imageA had changed")
        self.diskyard("image", "list", "B")
        return stored, changed

    def kill_a_copy(self) -> None:
        """SIGKILL in the middle of a copy; another host finds the rest and finishes it."""
        self.step("Kill a copy in the middle; let another host finish it")
        words = ["image", "copy", "A/golden", "B", "--rate", "100M"]
        print(f"{DIM}host-1${PLAIN} {BOLD}diskyard {' '.join(words)}{PLAIN}", flush=True)
        child = subprocess.Popen(
            [*COMMAND, *words], env=self.environment("host-1"), stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        deadline_s = time.monotonic() + 60
        while self.ask("image", "status", f"B/{self.golden_id}", host="host-2")["percent_complete"] < 30:
            if child.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit("The copy could not be caught in the middle.")
            time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
        child.wait()
        say("kill -9: the copy is gone in the middle, its image exists")
        self.diskyard("image", "status", f"B/{self.golden_id}", host="host-2")
        self.diskyard("repo", "check", "B", host="host-2")
        self.diskyard("repo", "fix", "B", host="host-2")
        self.diskyard("image", "status", f"B/{self.golden_id}", host="host-2")
        self.diskyard("repo", "fix", "A", host="host-2", quiet=True)

    def keep_a_guest_running(self) -> None:
        """Snapshots and a copy of a disk whose guest writes all the time, and is killed in the end."""
        self.step("A guest that writes throughout, while its disk is snapshotted and copied")
        owner = ("--owner", "guest")
        self.diskyard("disk", "create", "A", "64M", "--name", "busy")
        graph = self.ask("image", "prepare", "A/busy", *owner)["blockdev"]
        frozen: dict[str, int] = {}
        with StorageDaemonGuest(self.folder / "guest", [graph]) as guest:
            self.diskyard("image", "prepare", "A/busy", *owner, "--qmp", str(guest.monitor))
            for name in ("busy-1", "busy-2", "busy-3"):
                frozen[f"A/{name}"] = guest.acknowledged()
                self.diskyard("snapshot", "create", "A/busy", "--name", name)
            frozen["B/busy-copy"] = guest.acknowledged()
            self.diskyard("image", "copy", "A/busy", "B", "--name", "busy-copy")
            guest.wait_for(100)
            errors, last = guest.errors(), guest.kill()
        if errors:
            raise SystemExit(f"the guest saw errors: {errors}")
        self.diskyard("image", "teardown", "A/busy", *owner)
        frozen["A/busy"] = last
        points = {image: self.judged(image, before) for image, before in frozen.items()}
        say(f"the guest had {last} writes acknowledged; frozen after {', '.join(map(str, points.values()))}")
        self.rows.append(
            ("a guest that was never stopped", "each image is exactly what it had written by then")
        )

    def judged(self, image: str, acknowledged_before: int) -> int:
        """Up to which write an image has all that the guest wrote, and nothing else."""
        graph = self.ask("image", "prepare", image, "--read-only")["blockdev"]
        raw = self.folder / "frozen.raw"
        _quietly(["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(graph), str(raw)])
        self.diskyard("image", "teardown", image, quiet=True)
        return judge(raw, acknowledged_before)

    def merge_the_middle(self) -> int:
        """Remove the middle of a chain, merge and clean; the bytes that came back."""
        self.step("Remove the middle of a chain, merge, clean")
        self.diskyard("snapshot", "create", "A/web-1", "--name", "middle")
        self.random = random.Random(7)
        self.change_files("A/web-1", 150, "web-1")
        self.diskyard("snapshot", "create", "A/web-1", "--name", "after", quiet=True)
        self.random = random.Random(7)
        self.change_files("A/web-1", 150, "web-1")
        before = self.used("A")
        self.diskyard("repo", "usage", "A")
        self.diskyard("image", "remove", "A/after")
        self.diskyard("repo", "check", "A")
        self.diskyard("repo", "fix", "A")
        self.diskyard("repo", "usage", "A")
        return before - self.used("A")

    def used(self, name: str) -> int:
        """Bytes that a repository occupies, as the file system counts them."""
        folder = self.folder / f"repository-{name}" / "volumes"
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())

    def table(self) -> None:
        """What was shown."""
        self.step("What was shown")
        width = max(len(name) for name, _ in self.rows)
        for name, words in self.rows:
            print(f"  {name:{width}}  {words}")
        print(f"\n{BOLD}Done in {time.monotonic() - self.begin_s:.0f} s.{PLAIN}")


def _quietly(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:300]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _large_files() -> Iterator[tuple[Path, Path]]:
    """Files of 64 KiB or more of this system, and a name for each: much data, not too many names.

    A small system's are taken again under other names, until the caller has enough.
    """
    for number in itertools.count(1):
        for top in ("/usr/share", "/usr/lib", "/usr/bin", "/usr/sbin"):
            for folder, _, names in os.walk(top):
                for name in names:
                    path = Path(folder, name)
                    if not path.is_symlink() and path.is_file() and path.stat().st_size >= LARGE_BYTES:
                        yield path, Path(f"tree-{number}") / path.relative_to("/usr")


def _manifest(tree: Path) -> Manifest:
    """A checksum of each regular file, by its path in the tree."""
    return {
        str(path.relative_to(tree)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _file_blocks(image: Path, name: str) -> tuple[int, int] | None:
    """The first block and the length of a file of 64 KiB or more that lies in one piece."""
    if '"' in name or " " in name:
        return None
    request = f"stat /{name}"
    text = subprocess.run(["debugfs", "-R", request, str(image)], capture_output=True, text=True).stdout
    size = next(
        (int(w) for line in text.splitlines() if " Size: " in line for w in line.split("Size: ")[1:2]), 0
    )
    extents = text.partition("EXTENTS:\n")[2].strip()
    found = re.fullmatch(r"\(0-(\d+)\):(\d+)-\d+", extents)
    if found is None or not 64 << 10 <= size <= (int(found[1]) + 1) * BLOCK_BYTES:
        return None  # small, scattered, or with holes
    return int(found[2]), size


def main() -> None:
    """Run the demonstration in a folder of its own."""
    parser = argparse.ArgumentParser(description="Diskyard's main job on real data.")
    parser.add_argument("--folder", default=None, help="where to work (default: the temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diskyard-demo-", dir=arguments.folder))
    try:
        Demo(folder).run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
