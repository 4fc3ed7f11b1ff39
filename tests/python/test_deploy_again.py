"""Deploys that follow another, or that something interrupts, over a real OpenSSH server.

The bundle is the stand-in of stand_in.py; the server, ssh, install.sh and what it makes are real.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from boards import STORIES
from ssh_board import SshBoard, running_board
from stand_in import stand_in_bundle, to_deploy

from awq_edge.device import deploy as steps
from awq_edge.device.bundle import Bundle
from awq_edge.device.ssh import Remote
from awq_edge.errors import BoardError

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="this machine is the board")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with running_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def board(server: SshBoard) -> SshBoard:
    """The server with an empty home, honest programs, and a user that it knows."""
    server.clear()
    server.trust()
    server.speaks("")
    server.log_in_with("user")
    return server


@pytest.fixture
def one(tmp_path: Path) -> Bundle:
    return to_deploy(stand_in_bundle(tmp_path / "one").parent)


@pytest.fixture
def two(tmp_path: Path) -> Bundle:
    return to_deploy(stand_in_bundle(tmp_path / "two", version="2.0").parent)


def _deploy(
    board: SshBoard,
    bundle: Bundle,
    prefix: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
    heard: Callable[[str], None] = lambda _: None,
) -> Mapping[str, int]:
    """What the command does between the check and the first generation; gives what was there."""
    options = ["--ignore-memory"]
    with Remote("board", board.ssh) as remote:
        wanted = [*options, "--prefix", str(prefix)] if prefix else options
        facts = steps.check(remote, bundle.needs, wanted)
        with steps.alone(remote, facts.prefix):
            have = steps.arrived(remote, bundle, facts.prefix)
            steps.copy(remote, bundle, facts.prefix, have, progress)
            steps.install(remote, facts.prefix, options, heard)
    return have


def _version(prefix: Path) -> str:
    program = prefix / "current/bin/awq-edge"
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()


def _is_clean(prefix: Path) -> bool:
    names = sorted(path.name for path in prefix.iterdir())
    releases = list((prefix / "releases").iterdir())
    return names == ["awq-edge", "current", "models", "releases"] and len(releases) == 1


def test_the_same_deploy_twice_and_an_upgrade_send_the_model_once(
    board: SshBoard, one: Bundle, two: Bundle
) -> None:
    assert sum(_deploy(board, one).values()) == 0
    size = STORIES.stat().st_size
    assert _deploy(board, one)[STORIES.name] == size
    assert _is_clean(board.prefix)
    assert _deploy(board, two)[STORIES.name] == size
    assert _is_clean(board.prefix)
    assert _version(board.prefix) == "awq-edge 2.0"
    assert (board.prefix / "models" / STORIES.name).read_bytes() == STORIES.read_bytes()


def test_a_changed_model_of_the_same_size_is_sent(
    board: SshBoard, tmp_path: Path, one: Bundle
) -> None:
    _deploy(board, one)
    changed = tmp_path / "changed" / STORIES.name
    changed.parent.mkdir()
    data = bytearray(STORIES.read_bytes())
    data[-100] ^= 1
    changed.write_bytes(data)
    bundle = to_deploy(stand_in_bundle(tmp_path / "b", model=changed).parent)
    assert _deploy(board, bundle)[STORIES.name] == 0
    assert (board.prefix / "models" / STORIES.name).read_bytes() == data


def test_an_upgrade_while_a_program_runs(board: SshBoard, one: Bundle, two: Bundle) -> None:
    _deploy(board, one)
    running = subprocess.Popen(
        [board.prefix / "current/bin/awq-edge", "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert running.stdout is not None and running.stdout.readline() == b"waits\n"
        lines: list[str] = []
        _deploy(board, two, heard=lines.append)
        assert _version(board.prefix) == "awq-edge 2.0"
        assert len(list((board.prefix / "releases").iterdir())) == 2
        assert any("still runs from" in line for line in lines)
        assert running.poll() is None
    finally:
        running.kill()
        running.communicate()
    _deploy(board, two)
    assert _is_clean(board.prefix)


def test_a_connection_that_drops_while_the_board_installs(
    board: SshBoard, one: Bundle, two: Bundle
) -> None:
    """What runs there goes on, and the same command waits for it, or does its work again."""
    _deploy(board, one)

    def drop(line: str) -> None:
        assert line.startswith("Installing")
        board.break_connections()

    with pytest.raises(BoardError, match=r"^The connection to board broke.*run the same command"):
        _deploy(board, two, heard=drop)
    assert _version(board.prefix) in ("awq-edge 1.0", "awq-edge 2.0")
    _deploy(board, two)
    assert _version(board.prefix) == "awq-edge 2.0"
    assert _is_clean(board.prefix)


def test_a_slow_line_that_breaks_again_and_again(board: SshBoard, tmp_path: Path) -> None:
    """Each try carries the copy further; the last one ends well."""
    model = tmp_path / "large" / STORIES.name
    model.parent.mkdir()
    model.write_bytes(os.urandom(1_500_000))
    one = to_deploy(stand_in_bundle(tmp_path / "one", model=model).parent)
    incoming = board.prefix / "incoming"
    shares = [0]
    for _ in range(3):
        board.log_in_with("user", line=(1_500_000, 400_000))
        with pytest.raises(BoardError, match="run the same command again"):
            _deploy(board, one)
        # What has arrived is written after the line has broken.
        for _ in range(1000):
            shares.append(sum(p.stat().st_size for p in incoming.rglob("*") if p.is_file()))
            if shares[-1] > shares[0]:
                break
            time.sleep(0.05)
    assert shares == sorted(shares)
    assert shares[-1] > 0
    assert not (board.prefix / "releases").exists()
    board.log_in_with("user", line=(1_500_000, 0))
    have = _deploy(board, one)
    assert sum(have.values()) > 0
    assert _version(board.prefix) == "awq-edge 1.0"
    assert _is_clean(board.prefix)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up_while_the_board_installs(
    board: SshBoard, one: Bundle, two: Bundle, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not allow mounts")
    try:
        _deploy(board, one, disk)
        filler = disk / "filler"
        # Room for the copy, and none for what is made of it.
        with Remote("board", board.ssh) as remote:
            have = steps.arrived(remote, two, str(disk))
            steps.copy(remote, two, str(disk), have, lambda _: None)
            while (left := shutil.disk_usage(disk).free) > 8192:
                with filler.open("ab") as sink:
                    sink.write(b"\0" * (left - 4096))
            # Others fill the disk after the check.
            board.says("df", "echo head; echo /dev/mmcblk0p2 9000000 0 9000000 0% /")
            with pytest.raises(BoardError, match=r"board: the disk is full.*everything is as it"):
                steps.install(remote, str(disk), ["--ignore-memory"])
        assert _version(disk) == "awq-edge 1.0"
        assert len(list((disk / "releases").iterdir())) == 1
        filler.unlink()
        (board.stubs / "df").unlink()
        _deploy(board, two, disk)
        assert _version(disk) == "awq-edge 2.0"
        assert _is_clean(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_board_without_python(board: SshBoard, one: Bundle) -> None:
    for name in ("python3", *(f"python3.{minor}" for minor in range(9, 14))):
        board.says(name, "echo 'command not found' >&2; exit 127")
    with pytest.raises(BoardError, match=r"there is no 64-bit Python 3 here.*apt install python3"):
        _deploy(board, one)
    assert not any(board.home.iterdir())


@pytest.mark.parametrize("language", ["tr_TR.UTF-8", "C"])
def test_a_board_of_another_language(language: str, board: SshBoard, one: Bundle) -> None:
    """Programs that say nothing an English reader would know; upper case of i is another letter."""
    board.speaks(language)
    for program in ("sha256sum", "cp", "mv", "ln", "mkdir"):
        real = shutil.which(program)
        board.says(
            program, f'{real} "$@" 2>/dev/null || {{ echo "{program}: Fehler" >&2; exit 1; }}'
        )
    prefix = board.home / "Verzeichnis für Modelle"
    _deploy(board, one, prefix)
    assert _version(prefix) == "awq-edge 1.0"
    part = board.prefix.parent / "closed"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("")
    with pytest.raises(BoardError, match="is no folder"):
        _deploy(board, one, part / "below")


def test_of_two_deploys_at_once_one_is_refused(board: SshBoard, one: Bundle) -> None:
    with Remote("board", board.ssh) as remote, steps.alone(remote, str(board.prefix)):
        with pytest.raises(BoardError, match=r"Another deploy to .* is at work"):
            _deploy(board, one)
    for _ in range(300):  # the other one's end takes a moment to reach the board
        try:
            _deploy(board, one)
            break
        except BoardError as error:
            assert "is at work" in str(error)
            time.sleep(0.1)
    assert _version(board.prefix) == "awq-edge 1.0"


def test_what_other_deploys_left_is_removed(board: SshBoard, one: Bundle) -> None:
    incoming = board.prefix / "incoming"
    (incoming / "wheels").mkdir(parents=True)
    (incoming / "other.gguf.0123.part").write_bytes(b"x" * 100)
    (incoming / "wheels/old.whl").write_bytes(b"x")
    with Remote("board", board.ssh) as remote:
        steps.arrived(remote, one, str(board.prefix))
    assert [path.name for path in incoming.rglob("*")] == ["wheels"]


def test_a_link_in_place_of_a_folder_is_not_followed(
    board: SshBoard, one: Bundle, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "wheels").mkdir(parents=True)
    board.prefix.mkdir(parents=True)
    (board.prefix / "incoming").symlink_to(elsewhere)
    with pytest.raises(BoardError, match="a link, and no folder"):
        _deploy(board, one)
    (board.prefix / "incoming").unlink()
    (board.prefix / "models").symlink_to(elsewhere)
    with pytest.raises(BoardError, match="models is no folder"):
        _deploy(board, one)
    assert [path.name for path in elsewhere.rglob("*")] == ["wheels"]
