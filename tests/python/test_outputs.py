"""Outputs appear whole, over nothing else, and what is beside them belongs to one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_edge.errors import AwqEdgeError, FileUnreadableError, InvalidArgumentError
from awq_edge.outputs.place import Identity, Place, check_name, check_room, sync_tree
from awq_edge.outputs.whole_file import whole_file, write_whole
from awq_edge.outputs.workplace import MARK, Workplace, is_ours, opened


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def killed(action: Callable[[], object]) -> None:
    """Runs something in a child that must die by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(3)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is a directory"),
        (".", "is a directory"),
        ("..", "is a directory"),
        ("a\nb", "line break"),
        ("a\tb", "control character"),
        ("a\0b", "control character"),
        ("a\x9bb", "control character"),
        ("n" * 300, "too long"),
        ("n" * 250, "too long"),  # with what is added meanwhile
        ("missing/file", "There is no directory"),
        ("file/below", "There is no directory"),
    ],
)
def test_names_that_no_output_can_have(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(AwqEdgeError, match=words) as caught:
        Place(Path(name), replace=True)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]


def test_a_long_name_that_the_file_system_can_hold_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 200)
    write_whole(path, b"whole")
    assert path.read_bytes() == b"whole"
    check_name(tmp_path / "ü b.gguf")


def test_what_is_no_regular_file_is_refused_with_force_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    place = "s" * 10
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(".", os.O_RDONLY)
        os.chdir(tmp_path)  # the names of sockets are short
        server.bind(place)
        os.fchdir(here)
        os.close(here)
    before = names(tmp_path)
    for name, words in (
        ("fifo", "a pipe"),
        ("link", "a link to target"),
        ("dangling", "a link to nowhere"),
        ("folder", "a directory"),
        (place, "a socket"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            Place(tmp_path / name, replace=True)
    with pytest.raises(InvalidArgumentError, match="device"):
        Place(Path("/dev/null"), replace=True)
    assert names(tmp_path) == before
    assert (tmp_path / "target").read_text() == "mine"


def test_an_input_is_no_output_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "weights"
    weights.write_text("mine")
    os.link(weights, tmp_path / "other")
    (tmp_path / "linked").symlink_to("model")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "beyond")  # as in the hub's cache
    (tmp_path / "beyond").write_text("mine")
    inputs = {"the checkpoint": [weights, tmp_path / "model" / "link", tmp_path / "missing"]}
    for path in (weights, tmp_path / "other", tmp_path / "linked" / "weights", tmp_path / "beyond"):
        place = Place(path, replace=True)
        with pytest.raises(InvalidArgumentError, match="a file of the checkpoint"):
            place.refuse_inputs(inputs)
    Place(tmp_path / "new").refuse_inputs(inputs)


@pytest.mark.parametrize("replace", [False, True])
def test_what_came_meanwhile_is_not_overwritten(replace: bool, tmp_path: Path) -> None:
    path, finished = tmp_path / "output", tmp_path / "finished"
    finished.write_text("ours")
    place = Place(path, replace=replace)
    path.write_text("theirs")
    with pytest.raises(InvalidArgumentError, match=r"--force"):
        place.appear(finished)
    assert (path.read_text(), finished.read_text()) == ("theirs", "ours")

    older = Place(path, replace=True)
    path.unlink()
    path.write_text("another one's")
    with pytest.raises(InvalidArgumentError, match="meanwhile"):
        older.appear(finished)
    Place(path, replace=True).appear(finished)
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["output"]


def test_an_input_that_took_the_place_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("mine")
    place = Place(tmp_path / "output", replace=True)
    place.refuse_inputs({"the calibration text": [text]})
    os.link(text, tmp_path / "output")
    (tmp_path / "finished").write_text("ours")
    with pytest.raises(InvalidArgumentError):
        place.appear(tmp_path / "finished")
    assert text.read_text() == "mine"


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    write_whole(tmp_path / "output", b"whole")
    assert (tmp_path / "output").read_bytes() == b"whole"
    assert names(tmp_path) == ["output"]


def test_a_file_keeps_its_identity_when_it_gets_its_name(tmp_path: Path) -> None:
    told: list[Identity] = []
    (tmp_path / "finished").write_text("ours")
    Place(tmp_path / "output", announce=told.append).appear(tmp_path / "finished")
    assert told == [Identity.of(tmp_path / "output")]
    (tmp_path / "output").write_text("theirs")
    assert told != [Identity.of(tmp_path / "output")]
    assert Identity.of(tmp_path / "missing") is None


def test_room_is_counted_by_disk(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    room = free.f_bavail * free.f_frsize
    check_room([(tmp_path / "a", room // 4), (tmp_path / "b", room // 4)])
    with pytest.raises(FileUnreadableError, match="too full"):
        check_room([(tmp_path / "a", room // 4 * 3), (tmp_path / "b", room // 4 * 3)])


# ---- directories of our own ---------------------------------------------------------------------


def test_a_directory_is_made_taken_over_and_removed(tmp_path: Path) -> None:
    work = Workplace(tmp_path / "output")
    assert not work.take({"manifest": b"first"})
    assert names(work.path) == [MARK, "manifest"]
    assert is_ours(work.path)
    with work.new_file("part") as file:
        file.write(b"half")
    work.release()
    again = Workplace(tmp_path / "output")
    assert again.take({"manifest": b"second"})
    assert (again.path / "manifest").read_bytes() == b"first"
    assert (again.path / "part").read_bytes() == b"half"
    again.clear("manifest")
    assert names(again.path) == [MARK, "manifest"]
    again.remove()
    assert not names(tmp_path)


def test_two_at_one_place_exclude_each_other(tmp_path: Path) -> None:
    with Workplace(tmp_path / "output") as first:
        (first.path / "mine").write_text("")
        with pytest.raises(FileUnreadableError, match=r"Another awq-edge is writing .*output"):
            Workplace(tmp_path / "output").take({})
        assert names(first.path) == [MARK, "mine"]
        assert names(tmp_path) == [".output.partial"]
    with Workplace(tmp_path / "output"):
        pass
    assert not names(tmp_path)


def test_one_of_many_at_the_same_time_gets_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from awq_edge.outputs.workplace import Workplace\n"
        "work = Workplace(Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try: work.take({})\n"
        "except OSError: sys.exit(7)\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"  # until all others have tried
        "work.remove()\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "output")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = []
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("now\n")
        run.stdin.flush()
    for run in runs:
        assert run.stdout is not None
        said.append(run.stdout.readline())
    assert sorted(said) == ["", "", "", "taken\n"]
    for run in runs:
        run.communicate()
    assert sorted(run.returncode for run in runs) == [0, 7, 7, 7]
    assert not names(tmp_path)


@pytest.mark.parametrize("what", ["directory", "file", "link", "fifo", "manifest", "forged mark"])
def test_what_is_not_ours_is_left_alone(what: str, tmp_path: Path) -> None:
    work = Workplace(tmp_path / "output")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis").write_text("ten years of work")
    if what == "file":
        work.path.write_text("mine")
    elif what == "link":
        work.path.symlink_to("elsewhere")
    elif what == "fifo":
        os.mkfifo(work.path)
    else:
        work.path.mkdir()
        (work.path / "thesis").write_text("ten years of work")
        if what == "manifest":
            (work.path / "manifest.json").write_text('{"key": "web application"}')
        if what == "forged mark":
            (work.path / MARK).symlink_to(tmp_path / "elsewhere" / "thesis")
    with pytest.raises(FileUnreadableError, match=r"output\.partial is in the way"):
        work.take({})
    work.remove()
    assert os.path.lexists(work.path)
    assert (tmp_path / "elsewhere" / "thesis").exists()
    if what in ("directory", "manifest", "forged mark"):
        assert (work.path / "thesis").read_text() == "ten years of work"
    assert names(tmp_path) == [".output.partial", "elsewhere"]


def test_a_link_in_a_directory_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("ten years of work")
    with Workplace(tmp_path / "output") as work:
        (work.path / "part").symlink_to(tmp_path / "thesis")
        with work.new_file("part") as file:
            file.write(b"x")
        (work.path / "below").symlink_to(tmp_path)
        with pytest.raises(OSError):
            with opened(work.path / "below"):
                pass
        os.mkfifo(work.path / "fifo")
        with pytest.raises(OSError, match="regular"):
            with opened(work.path / "fifo"):
                pass
    assert (tmp_path / "thesis").read_text() == "ten years of work"
    assert names(tmp_path) == ["thesis"]


CHANGES = ["os.rename", "os.link", "os.fsync", "os.mkdir", "os.unlink", "pathlib.Path.unlink",
           "pathlib.Path.rmdir", "pathlib.Path.mkdir"]  # fmt: skip


@pytest.mark.parametrize("call", CHANGES)
@pytest.mark.parametrize("after", range(4))
def test_a_kill_at_any_change_leaves_a_way_on(call: str, after: int, tmp_path: Path) -> None:
    def write() -> None:
        patch = pytest.MonkeyPatch()
        left = [after]

        def real(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                die()
            return original(*arguments, **options)

        module, _, name = call.rpartition(".")
        owner = os if module == "os" else Path
        original = getattr(owner, name)
        patch.setattr(owner, name, real)
        write_whole(tmp_path / "output", b"new" * 1000)
        die()

    (tmp_path / "output").write_text("old")
    killed(write)
    assert (tmp_path / "output").read_bytes() in (b"old", b"new" * 1000)
    write_whole(tmp_path / "output", b"newer")
    assert (tmp_path / "output").read_bytes() == b"newer"
    assert names(tmp_path) == ["output"]


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text("old")
    for error in (KeyboardInterrupt, RuntimeError, OSError):
        with pytest.raises((error, FileUnreadableError)):
            with whole_file(Place(path, replace=True)) as file:
                file.write(b"new")
                raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["output"]


def test_a_directory_of_our_own_becomes_the_output(tmp_path: Path) -> None:
    work = Workplace(tmp_path / "output")
    work.take({})
    (work.path / "below").mkdir()
    (work.path / "below" / "file").write_text("whole")
    sync_tree(work.path)
    work.leave(tmp_path / "output")
    work.remove()
    assert names(tmp_path) == ["output"]
    assert names(tmp_path / "output") == ["below"]
