"""``awq-edge deploy`` against a real OpenSSH server on the loopback; this machine is the board.

Arm is the business of test_emulated_board.py: there the same install.sh and the same package run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import STORIES
from conftest import Command, CommandResult
from ssh_board import SshBoard, running_board

from awq_edge import _native
from awq_edge.device import deploy as steps
from awq_edge.device.bundle import Bundle, requirements
from awq_edge.device.ssh import Remote
from awq_edge.device.wheel import write_wheel
from awq_edge.errors import BoardError, UnsupportedError
from awq_edge.profiles import load_profile

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64",
    reason="this machine stands for the target x86_64-linux, and it is another one",
)
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with running_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def board(server: SshBoard) -> SshBoard:
    """The server with an empty home, honest programs, and a user that it knows."""
    server.clear()
    server.trust()
    server.log_in_with("user")
    return server


@pytest.fixture
def deploy(command: Command, board: SshBoard) -> Command:
    def run(*arguments: object, **options: object) -> CommandResult:
        return command("deploy", STORIES, "board", "--ssh", board.ssh, *arguments, **options)

    return run


def _nothing_installed(board: SshBoard) -> bool:
    return not any(path.name != "incoming" for path in board.prefix.glob("*"))


def _untouched(board: SshBoard) -> bool:
    return not any(board.home.iterdir())


# ---- the whole way -------------------------------------------------------------------------------


def test_from_a_file_to_a_text_on_the_board(
    deploy: Command, board: SshBoard, tmp_path: Path
) -> None:
    """Packages from the index, this machine's own library in the wheel, the rest for real."""
    wheel = write_wheel(load_profile("x86_64-linux"), _native.library_path(), tmp_path)
    result = deploy("--wheel", wheel)
    if "cannot be fetched" in result.err:
        pytest.skip(f"packages cannot be fetched here: {result.err}")
    assert result.status == 0, result.err
    assert "Once upon a time, there was a little boy named Timmy." in result.out
    assert re.search(r"decode +\d+\.\d tokens/s", result.out)
    assert re.search(r"peak memory +\d+\.\d MB", result.out)
    assert "temperature" in result.out
    assert "throttling" in result.out
    assert "avx" in result.out or "reference" in result.out
    assert "the same bits" in result.err

    program = board.home / ".local/bin/awq-edge"
    assert subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    assert (board.prefix / "models" / STORIES.name).read_bytes() == STORIES.read_bytes()
    assert not (board.prefix / "incoming").exists()

    dry = deploy("--dry-run")
    assert dry.status == 0, dry.err
    assert dry.out.count(". would ") == 5
    assert str(board.prefix) in dry.out


def test_a_dry_run_changes_nothing(deploy: Command, board: SshBoard) -> None:
    result = deploy("--dry-run", "--json", "-q")
    assert result.status == 0, result.err
    assert '"target": "x86_64-linux"' in result.out
    assert _untouched(board)


# ---- copying -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Two files, one of them large enough to be interrupted."""
    large, small = tmp_path / "model.gguf", tmp_path / "a.whl"
    large.write_bytes(os.urandom(24 << 20))
    small.write_bytes(b"small")
    files = {"wheels/a.whl": small, "model.gguf": large}
    digests = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}
    needs = requirements(STORIES, load_profile("x86_64-linux"), [HERE])
    return Bundle(needs, files, digests)


def test_an_interrupted_copy_resumes(board: SshBoard, bundle: Bundle) -> None:
    prefix, size = str(board.prefix), bundle.files["model.gguf"].stat().st_size
    sent = 0

    def cut_off(count: int) -> None:
        nonlocal sent
        sent += count
        if sent > size // 2:
            board.break_connections()

    with pytest.raises(BoardError, match=r"broke.*run the same command again"):
        with Remote("board", board.ssh) as remote:
            steps.copy(remote, bundle, prefix, steps.arrived(remote, bundle, prefix), cut_off)
    assert not (board.prefix / "incoming/model.gguf").exists()

    again = 0

    def count_again(count: int) -> None:
        nonlocal again
        again += count

    with Remote("board", board.ssh) as remote:
        have = steps.arrived(remote, bundle, prefix)
        assert have["wheels/a.whl"] == 5
        assert 0 < have["model.gguf"] < size
        steps.copy(remote, bundle, prefix, have, count_again)
        assert again == size - have["model.gguf"]
        assert dict(steps.arrived(remote, bundle, prefix)) == {
            "wheels/a.whl": 5,
            "model.gguf": size,
        }
    arrived = (board.prefix / "incoming/model.gguf").read_bytes()
    assert arrived == bundle.files["model.gguf"].read_bytes()
    assert not list((board.prefix / "incoming").glob("*.part"))


def test_a_damaged_beginning_is_sent_again(board: SshBoard, bundle: Bundle) -> None:
    prefix = str(board.prefix)
    part = board.prefix / f"incoming/model.gguf.{bundle.digests['model.gguf']}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 1000)
    with Remote("board", board.ssh) as remote:
        have = steps.arrived(remote, bundle, prefix)
        assert have["model.gguf"] == 1000
        steps.copy(remote, bundle, prefix, have, lambda _: None)
    arrived = (board.prefix / "incoming/model.gguf").read_bytes()
    assert arrived == bundle.files["model.gguf"].read_bytes()


def test_a_copy_that_is_damaged_twice_is_given_up(board: SshBoard, bundle: Bundle) -> None:
    damage = f'*receive*) LC_ALL=C tr "\\000" "\\001" | exec {sys.executable} "$@" ;;'
    board.says("python3", f'case "$*" in {damage} *) exec {sys.executable} "$@" ;; esac')
    with Remote("board", board.ssh) as remote:
        have = steps.arrived(remote, bundle, str(board.prefix))
        with pytest.raises(BoardError, match="arrived damaged on board twice"):
            steps.copy(remote, bundle, str(board.prefix), have, lambda _: None)
    left = [p.name for p in (board.prefix / "incoming").rglob("*") if p.is_file()]
    assert left == ["a.whl"]  # without zero bytes: it came through


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up_is_one_sentence(board: SshBoard, bundle: Bundle) -> None:
    disk = board.home / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not allow mounts")
    try:
        with Remote("board", board.ssh) as remote:
            have = steps.arrived(remote, bundle, str(disk))
            with pytest.raises(BoardError, match=r"disk of board is full.*model\.gguf"):
                steps.copy(remote, bundle, str(disk), have, lambda _: None)
        names = sorted(path.name for path in disk.rglob("*") if path.is_file())
        assert names == ["a.whl"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_refused_login(deploy: Command, board: SshBoard) -> None:
    board.log_in_with("stranger")
    deploy().assert_one_sentence("board refused the login", "ssh board")
    assert _untouched(board)


def test_an_unknown_host_key(deploy: Command, board: SshBoard) -> None:
    (board.folder / "known").write_text("")
    deploy().assert_one_sentence("host key of board is unknown", "ssh board")
    assert _untouched(board)


def test_a_changed_host_key(deploy: Command, board: SshBoard) -> None:
    key = " ".join((board.folder / "stranger.pub").read_text().split()[:2])
    (board.folder / "known").write_text(f"[127.0.0.1]:{board.port} {key}\n")
    deploy().assert_one_sentence("host key of board is not the one", "ssh-keygen -R")
    assert _untouched(board)


def test_no_server(deploy: Command, board: SshBoard) -> None:
    board.log_in_with("user", port=1)
    deploy().assert_one_sentence("runs no ssh server")


def test_no_such_host(command: Command) -> None:
    result = command("deploy", STORIES, "nobody@board.invalid")
    result.assert_one_sentence("board.invalid")


def test_a_32_bit_userland(deploy: Command, board: SshBoard) -> None:
    board.says("getconf", "case $1 in LONG_BIT) echo 32;; *) echo glibc 2.36;; esac")
    deploy().assert_one_sentence("board: the kernel is 64-bit but the programs are 32-bit")
    assert _untouched(board)


def test_too_little_memory(deploy: Command, board: SshBoard) -> None:
    board.says("sed", 'case "$*" in *MemTotal*) echo 900000;; *MemAva*) echo 1000;; esac')
    deploy().assert_one_sentence("memory", "--ignore-memory")
    assert _untouched(board)


def test_a_full_disk(deploy: Command, board: SshBoard) -> None:
    board.says("df", "echo head; echo /dev/mmcblk0p2 900 800 100 89% /")
    deploy().assert_one_sentence("disk", "0 MB are free")
    assert _untouched(board)


def test_another_machine_than_the_target(deploy: Command, board: SshBoard) -> None:
    deploy("--target", "rpi4b").assert_one_sentence("for aarch64", "x86_64")
    assert _untouched(board)


def test_a_file_that_is_no_model(command: Command, board: SshBoard, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("Once upon a time" * 100)
    command("deploy", path, "board", "--ssh", board.ssh).assert_one_sentence("magic")
    assert _untouched(board)


def test_a_shell_that_talks_at_login(board: SshBoard) -> None:
    board.says("sh", 'echo Welcome; exec /bin/sh "$@"')
    needs = requirements(STORIES, load_profile("x86_64-linux"), [HERE])
    with Remote("board", board.ssh) as remote:
        assert steps.check(remote, needs, []).machine == "x86_64"
    board.says("sh", "echo Welcome")
    with Remote("board", board.ssh) as remote, pytest.raises(BoardError, match="print nothing"):
        steps.check(remote, needs, [])


def test_a_failed_installation_says_what_the_script_says(board: SshBoard) -> None:
    script = board.prefix / "incoming/install.sh"
    script.parent.mkdir(parents=True)
    script.write_text("echo working >&2; echo 'install.sh: the self-test failed.' >&2; exit 1\n")
    with Remote("board", board.ssh) as remote:
        with pytest.raises(BoardError, match=r"^board: the self-test failed\.$"):
            steps.install(remote, str(board.prefix), [])
    assert _nothing_installed(board)


def test_no_ssh_program() -> None:
    with pytest.raises(UnsupportedError, match="install the OpenSSH client"):
        Remote("pi@board", "/nowhere/ssh -v")


def test_the_target_follows_from_what_the_board_calls_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Told:
        def __init__(self, text: str) -> None:
            self.text = text

        def run(self, _script: str) -> object:
            from awq_edge.device.ssh import Result

            return Result(0, self.text, "")

    for text, target in (
        ("aarch64\nRaspberry Pi 4 Model B Rev 1.4", "rpi4b"),
        ("aarch64\nRaspberry Pi 400 Rev 1.0", "rpi4b"),
        ("aarch64\nRaspberry Pi 5 Model B Rev 1.0", "rpi5"),
        ("aarch64\nNVIDIA Jetson Orin Nano Developer Kit", "jetson-orin"),
        ("aarch64\nRadxa ROCK 5B", "aarch64-generic"),
        ("x86_64\n", "x86_64-linux"),
        ("armv7l\nSomething", "aarch64-generic"),
    ):
        assert steps.identify(Told(text)).name == target  # type: ignore[arg-type]  # a stand-in


def test_a_bad_file_is_told_before_the_board_is_asked(command: Command, tmp_path: Path) -> None:
    arguments = ("deploy", tmp_path / "none.gguf", "nobody@board.invalid", "--ssh", "/bin/false")
    command(*arguments).assert_one_sentence("none.gguf", "No such file")
