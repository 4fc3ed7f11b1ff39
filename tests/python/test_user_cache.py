"""The cache directory: whatever lies there, it is read at once and whole, or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_edge import user_cache
from awq_edge.errors import FileUnreadableError

NAME = "answers"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("AWQ_EDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache/awq-edge"
    folder.mkdir(parents=True)
    return folder


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(str(path))


PLANTED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": plant_socket,
    "directory": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("/nonexistent/file"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a file": lambda path: path.symlink_to(path.parent.parent / "victim"),
    "endless": lambda path: path.write_bytes(b" " * ((1 << 20) + 1)),
    "of the world": lambda path: (path.write_bytes(b"theirs"), path.chmod(0o666)),
    "unreadable": lambda path: (path.write_bytes(b"x"), path.chmod(0o222)),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_was_planted_is_not_read_and_is_replaced(kind: str, cache: Path) -> None:
    victim = cache.parent / "victim"
    victim.write_bytes(b"precious")
    PLANTED[kind](cache / NAME)
    assert user_cache.read_cached(NAME) is None
    user_cache.write_cached(NAME, b"ours")
    assert user_cache.read_cached(NAME) == (None if kind == "directory" else b"ours")
    assert victim.read_bytes() == b"precious"
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_a_file_of_somebody_else_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_cache.write_cached(NAME, b"ours")
    assert user_cache.read_cached(NAME) == b"ours"
    assert (cache / NAME).stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert user_cache.read_cached(NAME) is None
    user_cache.write_cached(NAME, b"not in a folder of theirs")
    with pytest.raises(FileUnreadableError, match="AWQ_EDGE_CACHE"):
        user_cache.own_folder("build")
    monkeypatch.undo()
    assert (cache / NAME).read_bytes() == b"ours"


def test_a_folder_of_the_world_is_not_used(cache: Path) -> None:
    (cache / NAME).write_bytes(b"theirs")
    cache.chmod(0o777)
    assert user_cache.read_cached(NAME) is None
    user_cache.write_cached(NAME, b"ours")
    assert (cache / NAME).read_bytes() == b"theirs"
    with pytest.raises(FileUnreadableError, match="only you can change"):
        user_cache.own_folder("build")


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "link to a file", "endless"])
def test_a_folder_that_is_none_is_a_sentence(kind: str, cache: Path) -> None:
    (cache.parent / "victim").mkdir()
    PLANTED[kind](cache / "build")
    with pytest.raises(FileUnreadableError, match=str(cache / "build")):
        user_cache.own_folder("build")


def test_own_folders_are_made_for_this_user_alone(cache: Path) -> None:
    cache.rmdir()
    folder = user_cache.own_folder("build", "arm")
    assert folder == cache / "build/arm"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, folder.parent, cache))
    assert user_cache.own_folder("build", "arm") == folder


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "link to a file", "of the world"])
def test_a_build_with_something_planted_in_it_is_not_sound(kind: str, cache: Path) -> None:
    (cache / "a/b").mkdir(parents=True)
    (cache / "a/b/file").write_bytes(b"x")
    (cache / "victim").mkdir()
    assert user_cache.is_sound(cache / "a")
    PLANTED[kind](cache / "a/b/planted")
    assert not user_cache.is_sound(cache / "a")
    assert not user_cache.is_sound(cache / "nothing")
    assert not user_cache.is_sound(cache / "a/b/planted")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "own"))
    assert user_cache.cache_directory() == tmp_path / "own"
    monkeypatch.delenv("AWQ_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        found = user_cache.cache_directory()
        assert found is not None
        assert tmp_path in found.parents


def test_no_home_is_no_cache_and_no_folder_called_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    assert user_cache.cache_directory() is None
    assert user_cache.read_cached(NAME) is None
    user_cache.write_cached(NAME, b"nowhere")
    with pytest.raises(FileUnreadableError, match="home"):
        user_cache.own_folder("build")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_answer(
    failing: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_cache.write_cached(NAME, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    user_cache.write_cached(NAME, b"new")
    assert [(path.name, path.read_bytes()) for path in cache.iterdir()] == [(NAME, b"old")]
