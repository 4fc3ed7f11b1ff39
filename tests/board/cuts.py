"""What a cut leaves of an installation: one deploy with all its writes, and a look at many moments.

Owns the look: the image as a disk would hold it after a cut is mended as the board's kernel mends
it (the journal is replayed), the prefix is read out of it without mounting anything, and then the
old release or the new one must be there, whole to the last byte. A few of the images are booted
besides, by ``cases.py``. What was found stands in a table that a later run goes on with.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from machine import BoardFailure
from write_log import Disk, read_requests

from awq_edge.device import release as installed

HOME = "/home/pi/.local/share/awq-edge"
# With a cache that a cut empties, as a memory card has; each request is written down.
LOGGED = (
    "driver=blklogwrites,file.driver=file,file.filename={image},"
    "log.driver=file,log.filename={image}.writes"
)
# e2fsck's: nothing to do, or errors that it has corrected.
_SOUND = (0, 1)


@dataclass(frozen=True)
class Moment:
    """One cut.

    Attributes:
        number: Requests to the disk that had ended.
        place: Where the deploy was, for people.
        seed: Of what a cut loses.
    """

    number: int
    place: str
    seed: int


def moments(
    log: Path, lines: list[tuple[str, int]], count: int, chance: random.Random
) -> list[Moment]:
    """Random moments of a deploy, as many between any two of its lines as between any others.

    Args:
        log: The disk's writes.
        lines: What the command printed, and the bytes of the log by then; the last one is the end.
        count: How many moments.
        chance: Whose seed is printed.
    """
    requests = read_requests(log)
    marks = [sum(one.place + one.size <= size for one in requests) for _, size in lines]
    spans = [
        (line, begin, end) for (line, _), begin, end in zip(lines, marks, marks[1:]) if end > begin
    ]
    found = []
    for _ in range(count):
        line, begin, end = chance.choice(spans)
        number = chance.randint(begin + 1, end)
        place = f"{line[:32]!r} + {number - begin} of {end - begin} writes"
        found.append(Moment(number, place, chance.randrange(1 << 30)))
    return sorted(found, key=lambda moment: moment.number)


@dataclass(frozen=True)
class Look:
    """A look at many moments of one deploy.

    Attributes:
        before: The image that it began with.
        log: Its writes.
        table: One line of JSON for each moment that was judged; those there are not judged again.
        old: The release that ran before, as ``release_in`` tells it.
        boot: Starts a board from an image, and tries the same command again.
        boots: At so many of the moments, evenly spread.
    """

    before: Path
    log: Path
    table: Path
    old: str
    boot: Callable[[Path], None]
    boots: int

    def at_all(self, wanted: list[Moment]) -> str:
        """Judges the disk at every moment, in the order of time; the first failure ends it.

        Returns:
            Counts, for the table of cases.

        Raises:
            BoardFailure: A cut leaves what it must not.
        """
        known = self._known()
        state, copy = self.table.with_suffix(".state"), self.table.with_suffix(".cut")
        _copy(self.before, state)
        disk = Disk(state, self.log, read_requests(self.log))
        step = max(1, len(wanted) // max(1, self.boots))
        found: list[str] = []
        booted = 0
        try:
            for index, moment in enumerate(wanted):
                boots = booted < self.boots and index % step == step // 2
                booted += boots
                key = f"{moment.number} {moment.seed} {boots}"
                if key not in known:
                    disk.advance(moment.number)
                    _copy(state, copy)
                    lost = disk.cut(copy, random.Random(moment.seed))
                    place = f"cut {index}: {moment.place}, {lost}"
                    print(f"  {place}", flush=True)
                    known[key] = self._at(copy, place, boots=boots)
                    with self.table.open("a") as rows:
                        rows.write(json.dumps([key, place, known[key]]) + "\n")
                found.append(known[key])
        finally:
            for path in (state, copy):
                path.unlink(missing_ok=True)
        said = ", ".join(f"{found.count(one)} {one}" for one in sorted(set(found)))
        return f"{len(wanted)} cuts: {said}; {booted} booted"

    def _known(self) -> dict[str, str]:
        if not self.table.exists():
            return {}
        lines = (json.loads(line) for line in self.table.read_text().splitlines())
        return {key: found for key, _, found in lines}

    def _at(self, copy: Path, place: str, *, boots: bool) -> str:
        try:
            found = judge(copy, self.old)
            if boots:
                self.boot(copy)
        except BoardFailure as error:
            raise BoardFailure(f"{error} ({place})") from error
        return found


def debugfs(image: Path, command: str) -> str:
    """What debugfs answers; "" if there is no file of the name. Its status says nothing."""
    done = _run(["debugfs", "-R", command, str(image)])
    told = [
        line
        for line in done.stderr.splitlines()
        if not line.startswith("debugfs ") and "while changing ownership" not in line
    ]
    if any("File not found" in line for line in told):
        return ""
    if done.returncode != 0 or told:
        raise BoardFailure(f"debugfs cannot '{command}': {' '.join(told)[-200:]}")
    return done.stdout


def release_in(image: Path) -> str:
    """The name of the release in use on a disk; "" if there is none."""
    said = debugfs(image, f"stat {HOME}/current")
    match = re.search(r'link dest: "releases/([^"]+)"', said)
    return match[1] if match else ""


def judge(image: Path, old: str) -> str:
    """Looks at an image as a cut has left it; its journal is replayed in place.

    Args:
        image: The disk.
        old: The release that ran before, or "".

    Returns:
        "with no release", "with the old release" or "with the new release".

    Raises:
        BoardFailure: A release in use is not whole, there is none where there was one, or a file of
            the copy has its name before its contents.
    """
    folder = image.with_suffix(".tree")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        done = _run(["e2fsck", "-fy", str(image)])
        if done.returncode not in _SOUND:
            raise BoardFailure(f"the file system is broken: {done.stdout.strip()[-200:]}")
        debugfs(image, f"rdump {HOME} {folder}")
        return _judge_tree(folder / Path(HOME).name, old)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judge_tree(prefix: Path, old: str) -> str:
    _judge_incoming(prefix / "incoming")
    current = prefix / "current"
    if not current.is_symlink():
        if old:
            raise BoardFailure("no release is in use any more")
        return "with no release"
    release = prefix / os.readlink(current)  # noqa: PTH115  # as it is written
    try:
        installed.compare_contents(str(release), installed.read_list(str(release)))
    except installed.Damaged as error:
        raise BoardFailure(f"{error} of the release in use is not as it was installed") from error
    launcher = prefix / "awq-edge"
    if not (launcher.is_file() and launcher.stat().st_size):
        raise BoardFailure("the launcher is empty or missing")
    links = [path for path in (prefix / "models").iterdir() if path.is_symlink()]
    if not any(path.exists() for path in links):
        raise BoardFailure("no model is left")
    return f"with the {'old' if release.name == old else 'new'} release"


def _judge_incoming(folder: Path) -> None:
    """A file that has got its name has its contents: what the list of checksums says."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if path.is_file() and installed.file_digest(str(path)) != digest:
            raise BoardFailure(f"incoming/{name} has its name and not its contents")


def _copy(source: Path, target: Path) -> None:
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    subprocess.run(command, check=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    path = f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin"
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
