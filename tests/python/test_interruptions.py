"""Conversions that are killed, fail or meet somebody else: the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)
import quantised_checkpoints as made  # noqa: E402
from kill_conversions import kill_and_go_on  # noqa: E402

from awq_edge.conversion import Events, Options, convert  # noqa: E402
from awq_edge.conversion.work_directory import WorkDirectory  # noqa: E402
from awq_edge.errors import (  # noqa: E402
    AwqEdgeError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.interchange.export import Export  # noqa: E402
from awq_edge.interchange.importer import import_checkpoint  # noqa: E402
from awq_edge.interchange.quantised_checkpoint import open_quantised  # noqa: E402
from awq_edge.outputs.workplace import MARK, Workplace  # noqa: E402

OPTIONS = Options(method="rtn", group_size=32)
CALIBRATED = Options(method="awq", group_size=32, samples=2, sequence_length=24)
# What Python tells an audit hook before it changes a directory.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model") / "checkpoint"
    checkpoints.save(checkpoints.random_model("llama", num_hidden_layers=2), directory)
    return str(directory)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked child has none of its parent's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def killed_at(change: int | None, folder: Path, action: Callable[[], object]) -> int:
    """Runs something in a child that is killed before its so-manieth change below a folder.

    Returns:
        How many changes it made.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in CHANGES or str(folder) not in str(arguments[0]):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        sys.addaudithook(hook)
        try:
            action()
            os.write(tell, str(count).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text or 0)


def goes_on_after_every_kill(action: Callable[[Path], object], tmp_path: Path) -> None:
    """Kills an action at some of its changes, and at all of its last ones; then it runs again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    total = killed_at(None, whole, lambda: action(whole))
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert total > 20 and len(expected) >= 1
    for change in sorted({*range(0, total, max(1, total // 8)), *range(total - 8, total)}):
        folder = tmp_path / f"killed.{change}"
        folder.mkdir()
        killed_at(change, folder, lambda folder=folder: action(folder))  # type: ignore[misc]
        if names(folder) != sorted(expected):  # else it was done
            with contextlib.suppress(InvalidArgumentError):  # done, but for what was beside it
                action(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected, change


def test_a_conversion_with_its_export_goes_on_after_every_kill(source: str, tmp_path: Path) -> None:
    def action(folder: Path) -> None:
        convert(source, folder / "m", OPTIONS, export=Export("gguf", folder / "x"))

    goes_on_after_every_kill(action, tmp_path)


def test_a_command_goes_on_after_kills_at_moments_of_its_own_time(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few of what ``kill_conversions.py`` does by the hundred, the command line included."""
    monkeypatch.setenv("TERM", "dumb")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = ["convert", source, "-o", "{out}/m", "--method", "rtn", "--group-size", "32", "-q"]
    try:
        found = kill_and_go_on(command, tmp_path, kills=4, interrupts=4, seed=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not found.faults
    ended = sum(count for state, count in found.states.items() if "finished" not in state)
    assert ended > 2, found.states


def test_an_import_with_its_export_goes_on_after_every_kill(tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    made.write_gemm(quantised)

    def action(folder: Path) -> None:
        opened = open_quantised(str(quantised))
        import_checkpoint(opened, folder / "m", export=Export("gguf", folder / "x"))

    goes_on_after_every_kill(action, tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("broken")])
def test_an_export_that_fails_keeps_what_it_needs(
    error: Exception, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = Export("gguf", tmp_path / "x")
    convert(source, tmp_path / "a", OPTIONS, export=Export("gguf", tmp_path / "b"))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise error

        patch.setattr("awq_edge.interchange.export_gguf.write_gguf", fail)
        with pytest.raises((RuntimeError, FileUnreadableError)):
            convert(source, tmp_path / "m", OPTIONS, export=export)
    assert names(tmp_path) == ["a", "b", "m", "m.partial"]

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("awq_edge.conversion.pipeline.Walk", never)
    convert(source, tmp_path / "m", OPTIONS, export=export)
    assert names(tmp_path) == ["a", "b", "m", "x"]
    assert (tmp_path / "m").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "x").read_bytes() == (tmp_path / "b").read_bytes()


def interrupted(source: str, output: Path, options: Options, **more: Any) -> Path:
    """A work directory with one finished layer."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, output, options, events=Events(layer_done=stop), **more)
    return output.with_name(f"{output.name}.partial")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "zeroed":
        data[:] = bytes(len(data))
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "longer":
        data += b"\0"
    elif how == "flipped":
        data[len(data) // 2] ^= 1
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "a link":
        path.symlink_to("/etc/passwd")
    elif how == "a directory":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(bytes(data))


HOWS = ["zeroed", "cut", "longer", "flipped", "gone", "a pipe", "a link", "a directory"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[("manifest.json", how) for how in HOWS],
        *[("blk.0.ffn_up.weight.packed", how) for how in HOWS],
        ("token_embd.weight.packed", "flipped"),
        ("blk.0.attn_norm.weight.npy", "flipped"),
        ("scaled.0.ffn_up.weight.npy", "flipped"),
    ],
)
def test_what_is_damaged_in_a_work_directory_is_noticed(
    name: str, how: str, source: str, tmp_path: Path
) -> None:
    export = Export("gguf", tmp_path / "x")
    convert(source, tmp_path / "whole", OPTIONS, export=Export("gguf", tmp_path / "y"))
    partial = interrupted(source, tmp_path / "m", OPTIONS, export=export)
    damage(partial / name, how)
    messages: list[str] = []
    convert(source, tmp_path / "m", OPTIONS, events=Events(messages.append), export=export)
    assert len(messages) == 1 and messages[0].endswith("is damaged: starting anew.")
    assert name.split(".")[0] in messages[0]
    assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert names(tmp_path) == ["m", "whole", "x", "y"]


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "[" * 100_000, '{"key": 1e999}', '{"key": "k", "layers": 5}', "\0"],
)
def test_whatever_a_manifest_holds_there_is_a_way_on(
    text: str, source: str, tmp_path: Path
) -> None:
    partial = interrupted(source, tmp_path / "m", OPTIONS)
    (partial / "manifest.json").write_text(text)
    convert(source, tmp_path / "m", OPTIONS)
    assert names(tmp_path) == ["m"]


def test_a_manifest_that_was_edited_is_noticed(source: str, tmp_path: Path) -> None:
    partial = interrupted(source, tmp_path / "m", OPTIONS)
    entries = json.loads((partial / "manifest.json").read_text())
    entries["files"] = {}
    (partial / "manifest.json").write_text(json.dumps(entries))
    messages: list[str] = []
    convert(source, tmp_path / "m", OPTIONS, events=Events(messages.append))
    assert "manifest" in messages[0]


def test_damaged_hidden_states_are_noticed(tmp_path: Path) -> None:
    directory = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    checkpoints.save_tokenizer(directory)
    convert(str(directory), tmp_path / "whole", CALIBRATED)
    for how in ("flipped", "cut", "longer", "gone"):
        partial = interrupted(str(directory), tmp_path / "m", CALIBRATED)
        damage(partial / "hidden.1", how)
        messages: list[str] = []
        convert(str(directory), tmp_path / "m", CALIBRATED, events=Events(messages.append))
        assert any("hidden.1 of an interrupted" in message for message in messages)
        assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "m").unlink()


def test_what_a_manifest_names_was_synced_before(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr("os.fsync", noted)
    partial = interrupted(source, tmp_path / "m", OPTIONS)
    named = json.loads((partial / "manifest.json").read_text())["files"]
    assert len(named) >= 10
    assert set(named) <= synced
    assert partial.name in synced


def test_the_second_of_two_conversions_is_refused(source: str, tmp_path: Path) -> None:
    seen: list[str] = []

    def another(*_: object) -> None:
        for action in (
            lambda: convert(source, tmp_path / "m", OPTIONS),
            lambda: convert(source, tmp_path / "m", OPTIONS, force=True),
        ):
            with pytest.raises(FileUnreadableError, match="Another awq-edge is writing") as caught:
                action()
            seen.append(str(caught.value))

    convert(source, tmp_path / "m", OPTIONS, events=Events(layer_done=another))
    assert len(seen) == 4
    assert names(tmp_path) == ["m"]


def test_an_output_that_came_meanwhile_is_kept_and_so_is_the_work(
    source: str, tmp_path: Path
) -> None:
    def another(*_: object) -> None:
        (tmp_path / "m").write_text("theirs")

    with pytest.raises(InvalidArgumentError, match="exists already"):
        convert(source, tmp_path / "m", OPTIONS, events=Events(layer_done=another))
    assert (tmp_path / "m").read_text() == "theirs"
    with pytest.raises(InvalidArgumentError, match="exists already"):
        convert(source, tmp_path / "m", OPTIONS)
    done: list[object] = []
    events = Events(layer_scaled=lambda layer, weights: done.append(layer))
    convert(source, tmp_path / "m", OPTIONS, force=True, events=events)
    assert not done  # nothing was computed again
    assert (tmp_path / "m").read_bytes()[:4] == b"GGUF"
    assert names(tmp_path) == ["m"]


def test_no_file_that_is_read_is_an_output(tmp_path: Path) -> None:
    directory = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    checkpoints.save_tokenizer(directory)
    text = tmp_path / "text"
    text.write_text("The quick brown fox. " * 50)
    options = Options(method="awq", group_size=32, calibration=text, samples=2, sequence_length=24)
    (tmp_path / "linked").symlink_to("checkpoint")
    os.link(directory / "config.json", tmp_path / "hard")
    before = {path: path.read_bytes() for path in [*directory.iterdir(), text]}
    outputs = [*before, tmp_path / "linked" / "model.safetensors", tmp_path / "hard"]
    for output in outputs:
        with pytest.raises(InvalidArgumentError, match="would be overwritten"):
            convert(str(directory), output, options, force=True)
    for output in (tmp_path / "m", tmp_path / "m.partial"):
        with pytest.raises(InvalidArgumentError, match="cannot both"):
            convert(str(directory), tmp_path / "m", options, export=Export("gguf", output))
    with pytest.raises(InvalidArgumentError, match="exists already"):
        convert(str(directory), tmp_path / "m", options, export=Export("hf-awq", directory))
    assert {path: path.read_bytes() for path in before} == before
    # A packed file may lie beside the checkpoint's own, and be replaced.
    for _ in range(2):
        convert(str(directory), directory / "m.gguf", OPTIONS, force=True)


def test_an_import_does_not_overwrite_its_checkpoint(tmp_path: Path) -> None:
    made.write_gemm(tmp_path)
    weights = tmp_path / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(InvalidArgumentError, match="a file of the checkpoint"):
        import_checkpoint(open_quantised(str(tmp_path)), weights, force=True)
    assert weights.read_bytes() == before


def test_a_checkpoint_that_cannot_be_converted_leaves_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise UnsupportedError("no runtime opens it")

    monkeypatch.setattr("awq_edge.conversion.pipeline.check_runs", refuse)
    with pytest.raises(UnsupportedError):
        convert(source, tmp_path / "m", OPTIONS)
    assert not names(tmp_path)


def test_room_for_an_export_is_looked_at_before_the_work(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    convert(source, tmp_path / "m", OPTIONS)
    with pytest.raises(FileUnreadableError, match="too full"):
        convert(source, tmp_path / "n", OPTIONS, export=Export("gguf", tmp_path / "x"))
    assert names(tmp_path) == ["m"]


def test_the_manifest_appears_with_its_directory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    seize = Workplace._seize

    def looking(self: Workplace) -> bool:
        seen.append(names(self.path))
        return seize(self)

    monkeypatch.setattr(Workplace, "_seize", looking)
    with WorkDirectory(tmp_path / "m", "key", Events()):
        pass
    assert seen == [[MARK, "manifest.json"]]
    assert not names(tmp_path)


def test_a_place_that_is_no_place_is_told_before_the_checkpoint_is_opened() -> None:
    for output in ("", ".", "..", "x" * 300, "line\nbreak", "nul\0", "/dev/null"):
        for export in (None, Export("gguf", Path(output))):
            with pytest.raises(AwqEdgeError) as caught:
                convert("/no/such/model", Path(output), OPTIONS, export=export)
            assert "/no/such/model" not in str(caught.value)
