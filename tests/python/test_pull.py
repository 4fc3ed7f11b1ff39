"""``awq-edge pull`` against a server that breaks lines, lies, changes its file and redirects."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from awq_edge.errors import AwqEdgeError, InvalidArgumentError
from awq_edge.store import download
from awq_edge.store.download import DownloadError, fetch, partial_progress
from awq_edge.store.folder import entries, find, partial_folders, remove
from awq_edge.store.source import Source, find_source

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tests/data/stories260k.awq.gguf"
CONTENT = STORIES.read_bytes()
NAME = "stories.awq.gguf"
# Small, so that the small model has many.
CHUNK = 1 << 14


class Server(ThreadingHTTPServer):
    """One file at /model, and the faults that a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.modified = ""
        self.ranges = True
        self.asked: list[tuple[int, int | None]] = []
        self.keys: list[str | None] = []
        self.sent = 0
        # Called before an answer; may end it by returning True.
        self.fault: Callable[[Handler], bool] = lambda _: False
        # Bytes of each answer after which the line breaks.
        self.breaks: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def plain(self, status: int, content: bytes = b"", **headers: str) -> bool:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        return True

    def do_GET(self) -> None:
        server = self.server
        self.close_connection = True
        server.keys.append(self.headers["Authorization"])
        if server.fault(self):
            return
        content, begin, end = server.content, 0, len(server.content)
        wanted = (self.headers["Range"] or "").removeprefix("bytes=")
        first, _, last = wanted.partition("-")
        server.asked.append((int(first or 0), int(last) + 1 if last else None))
        if server.ranges and wanted:
            begin, end = int(first), min(int(last) + 1, end) if last else end
            if begin >= len(content):
                self.plain(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - begin))
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        self.end_headers()
        body = content[begin:end]
        if server.breaks:
            body = body[: server.breaks.pop(0)]
        server.sent += len(body)  # before, for who has read all of it may ask at once
        self.wfile.write(body)


class Seen:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.bytes = 0
        self.said: list[str] = []
        self.stop_after: int | None = None

    def begins(self, size_bytes: int, there_bytes: int) -> None:
        self.sizes.append((size_bytes, there_bytes))

    def advance(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        if self.stop_after is not None and self.bytes >= self.stop_after:
            raise KeyboardInterrupt

    def says(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_EDGE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "CHUNK_BYTES", CHUNK)
    return tmp_path / "models"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


def pull(server: Server, seen: Seen | None = None, **settings: object) -> Path:
    source = Source(f"{server.address}/model", NAME)
    waits = settings.pop("waits", [])
    assert isinstance(waits, list)
    return fetch(source, seen or Seen(), wait=waits.append, **settings)  # type: ignore[arg-type]


def assert_nothing_is_left(models: Path) -> None:
    assert [path for path in models.iterdir() if path.name != NAME] == []


# ---- what arrives --------------------------------------------------------------------------------


def test_a_whole_file_has_its_name_and_its_bytes(server: Server, models: Path) -> None:
    seen = Seen()
    path = pull(server, seen)
    assert path == models / NAME and path.read_bytes() == CONTENT
    assert seen.sizes == [(len(CONTENT), 0)] and seen.bytes == len(CONTENT)
    assert_nothing_is_left(models)
    assert [entry.name for entry in entries()] == [NAME]
    for name in (NAME, "stories", "stories.awq"):
        assert find(name) == path


def test_a_line_that_breaks_is_taken_up_where_it_broke(server: Server, models: Path) -> None:
    server.breaks = [50_000, 0, 1, 70_001, 3]
    waits: list[float] = []
    assert pull(server, waits=waits).read_bytes() == CONTENT
    assert [begin for begin, _ in server.asked] == [0, 50_000, 50_000, 50_001, 120_002, 120_005]
    assert server.sent == len(CONTENT), "nothing was sent twice"
    assert len(waits) == 5


def test_an_interrupted_pull_goes_on_in_the_next_one(server: Server, models: Path) -> None:
    seen = Seen()
    seen.stop_after = 5 * CHUNK
    with pytest.raises(KeyboardInterrupt):
        pull(server, seen)
    (folder,) = partial_folders()
    assert partial_progress(folder) == (5 * CHUNK, len(CONTENT))
    assert entries() == []
    again = Seen()
    assert pull(server, again).read_bytes() == CONTENT
    assert again.sizes == [(len(CONTENT), 5 * CHUNK)]
    assert server.asked[-1][0] == 5 * CHUNK
    assert again.bytes == len(CONTENT) - 5 * CHUNK


@pytest.mark.parametrize(
    "loss",
    ["data cut", "data changed", "manifest cut", "manifest garbage", "manifest gone", "data gone"],
)
def test_what_a_power_cut_spoiled_is_fetched_again(loss: str, server: Server, models: Path) -> None:
    seen = Seen()
    seen.stop_after = 6 * CHUNK
    with pytest.raises(KeyboardInterrupt):
        pull(server, seen)
    (folder,) = partial_folders()
    data, manifest = folder / "data", folder / "manifest"
    kept = 6
    if loss == "data cut":
        os.truncate(data, 2 * CHUNK + 5)
        kept = 2
    elif loss == "data changed":
        content = bytearray(data.read_bytes())
        content[CHUNK + 7] ^= 1
        data.write_bytes(content)
        kept = 5
    elif loss == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:-30])
        kept = 5
    elif loss == "manifest garbage":
        manifest.write_bytes(
            manifest.read_bytes() + bytes(range(256)) + b"\n9 x\n99999 " + b"0" * 64
        )
    elif loss == "manifest gone":
        manifest.unlink()
        kept = 0
    else:
        data.unlink()
        kept = 0
    server.sent = 0
    assert pull(server).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) - kept * CHUNK
    assert_nothing_is_left(models)


def test_kill_9_at_any_moment_loses_less_than_a_chunk(server: Server, models: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from awq_edge.store import download\n"
        "from awq_edge.store.source import Source\n"
        f"download.CHUNK_BYTES = {CHUNK}\n"
        "class Killed:\n"
        "    done = 0\n"
        "    def begins(self, size_bytes, there_bytes): pass\n"
        "    def says(self, text): pass\n"
        "    def advance(self, size_bytes):\n"
        "        self.done += size_bytes\n"
        "        if self.done > int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"download.fetch(Source(sys.argv[1], {NAME!r}), Killed())\n"
    )
    for _ in range(20):
        command = [sys.executable, "-c", program, f"{server.address}/model", str(3 * CHUNK)]
        status = subprocess.run(command, check=False, timeout=120).returncode
        if status == 0:
            break
        assert status == -9
    assert (models / NAME).read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + 20 * (2 * CHUNK + (1 << 22))
    begins = [begin for begin, _ in server.asked]
    assert begins == sorted(begins) and len(set(begins)) == len(begins)


def test_a_server_without_ranges_is_read_from_the_beginning(server: Server) -> None:
    server.ranges = False
    server.breaks = [100_000]
    assert pull(server).read_bytes() == CONTENT
    assert len(server.asked) == 2 and server.sent == 100_000 + len(CONTENT)


@pytest.mark.parametrize("mark", ["etag", "modified", "size"])
def test_a_file_that_changes_meanwhile_is_fetched_anew(mark: str, server: Server) -> None:
    old = bytearray(CONTENT)
    old[40_000] ^= 0xFF  # another version: the same bytes in front, others behind
    server.content = bytes(old)
    server.etag, server.modified = "", ""
    if mark == "size":
        server.content = CONTENT[:-64]
    setattr(server, "etag" if mark == "size" else mark, '"one"' if mark == "etag" else "")
    if mark == "modified":
        server.modified = "Mon, 01 Jun 2026 00:00:00 GMT"
    server.breaks = [60_000]

    def changed(_: Handler) -> bool:
        if server.asked:
            server.content = CONTENT
            if mark == "etag":
                server.etag = '"two"'
            elif mark == "modified":
                server.modified = "Tue, 02 Jun 2026 00:00:00 GMT"
        return False

    server.fault = changed
    seen = Seen()
    assert pull(server, seen).read_bytes() == CONTENT
    assert seen.said == ["The file has changed at its source: it is fetched anew."]


def test_a_file_that_always_changes_is_given_up(server: Server) -> None:
    def changing(_: Handler) -> bool:
        server.etag = f'"{len(server.asked)}"'
        return False

    server.fault = changing
    server.breaks = [20_000] * 50
    with pytest.raises(DownloadError, match="changes again and again"):
        pull(server)


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "no file at /model"), (401, "HF_TOKEN"), (403, "licence"), (410, "no longer")],
)
def test_a_server_that_says_no_is_one_sentence(status: int, words: str, server: Server) -> None:
    server.fault = lambda handler: handler.plain(status, b"<html>")
    with pytest.raises(DownloadError, match=words):
        pull(server)
    assert len(server.keys) == 1, "asking again would not help"


def test_a_busy_server_is_asked_again_when_it_says(server: Server) -> None:
    answers = iter([503, 429])

    def busy(handler: Handler) -> bool:
        status = next(answers, None)
        return status is not None and handler.plain(status, Retry_After="7")

    server.fault = busy
    waits: list[float] = []
    assert pull(server, waits=waits).read_bytes() == CONTENT
    assert waits == [7.0, 7.0]


def test_a_line_that_stays_broken_is_given_up_and_keeps_what_came(server: Server) -> None:
    server.breaks = [3 * CHUNK + 1] + [0] * 100
    waits: list[float] = []
    with pytest.raises(DownloadError, match=r"broke off at \d+ % .*same command again"):
        pull(server, waits=waits)
    assert len(waits) == 8 and max(waits) <= 30
    assert partial_progress(partial_folders()[0]) == (3 * CHUNK, len(CONTENT))


def test_nobody_listens(models: Path) -> None:
    waits: list[float] = []
    seen = Seen()
    with pytest.raises(DownloadError, match=r"^127\.0\.0\.1 cannot be reached \(.*refused"):
        fetch(Source("http://127.0.0.1:9/model", NAME), seen, wait=waits.append)
    assert waits == [1, 2, 4, 8]
    assert [text.rpartition(": ")[2] for text in seen.said] == [
        "trying again in 4 seconds",
        "trying again in 8 seconds",
    ]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, "how long"),
        ({"Content-Length": "-5"}, "how long"),
        ({"Content-Length": "1e9"}, "how long"),
        ({"Content-Length": "3"}, "no packed file"),
        ({"Content-Length": "5000", "Content-Encoding": "gzip"}, "encoding"),
    ],
)
def test_a_head_that_cannot_be_used(head: dict[str, str], words: str, server: Server) -> None:
    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        for name, value in head.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(b"GGU")
        return True

    server.fault = answer
    with pytest.raises(DownloadError, match=words):
        pull(server)


@pytest.mark.parametrize(
    "text", ["bytes 5-9/100", "bytes 0-9/5", "bytes */100", "bytes 0-99999999999999999999/9", ""]
)
def test_other_bytes_than_were_asked_for(text: str, server: Server) -> None:
    server.fault = lambda handler: handler.plain(206, b"GGUF", Content_Range=text)
    with pytest.raises(DownloadError, match="other bytes"):
        pull(server)


def test_a_page_is_noticed_at_its_first_bytes(server: Server, models: Path) -> None:
    server.content = b"<!doctype html>" + bytes(200_000)
    with pytest.raises(DownloadError, match="no packed file"):
        pull(server)
    assert_nothing_is_left(models)


def test_a_file_that_is_damaged_at_its_source(server: Server, models: Path) -> None:
    content = bytearray(CONTENT)
    content[-5000] ^= 1
    server.content = bytes(content)
    with pytest.raises(DownloadError, match=r"damaged.*deleted again"):
        pull(server)
    assert_nothing_is_left(models)
    server.content = CONTENT[:-4096]
    with pytest.raises(DownloadError, match="cut off"):
        pull(server)


def test_the_sum_of_the_whole_file(server: Server, models: Path) -> None:
    with pytest.raises(DownloadError, match="SHA-256"):
        pull(server, sha256="0" * 64)
    assert_nothing_is_left(models)
    pull(server, sha256=hashlib.sha256(CONTENT).hexdigest().upper())


def test_a_disk_without_room_is_told_before_the_work(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = lambda handler: handler.plain(
        206, b"GGUF", Content_Range=f"bytes 0-3/{1 << 49}", ETag='"x"'
    )
    with pytest.raises(AwqEdgeError, match="too full"):
        pull(server)


def test_what_is_there_stays_without_force(server: Server, models: Path) -> None:
    pull(server)
    with pytest.raises(InvalidArgumentError, match="--force"):
        pull(server)
    (models / NAME).write_bytes(b"old")
    assert pull(server, force=True).read_bytes() == CONTENT


def test_a_second_pull_of_the_same_model_is_refused(server: Server) -> None:
    seen = Seen()

    def second(_: int) -> None:
        with pytest.raises(AwqEdgeError, match="Another pull"):
            pull(server)
        seen.stop_after = 1

    seen.advance = second  # type: ignore[method-assign]
    pull(server, seen)


# ---- redirects and keys --------------------------------------------------------------------------


def test_redirects_are_followed_and_keys_stay_at_home(server: Server) -> None:
    with Server() as other:
        other.fault = lambda handler: (
            handler.path == "/model" and handler.plain(302, Location=f"{server.address}/model?x=1")
        )
        source = Source(f"{other.address}/model", NAME, {"Authorization": "Bearer secret"})
        assert fetch(source, Seen()).read_bytes() == CONTENT
        assert other.keys == ["Bearer secret"] and server.keys == [None]
        other.shutdown()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/model", "circle"),
        ("/b", "circle"),
        ("file:///etc/passwd", "not safe"),
        ("ftp://x/", "safe"),
    ],
)
def test_redirects_that_lead_nowhere(target: str, words: str, server: Server) -> None:
    def lead(handler: Handler) -> bool:
        return handler.plain(302, Location="/model" if handler.path == target else target)

    server.fault = lead
    with pytest.raises(DownloadError, match=words):
        pull(server)
    assert len(server.keys) <= 12


def test_a_long_chain_of_redirects_ends(server: Server) -> None:
    server.fault = lambda handler: handler.plain(302, Location=f"{handler.path}x")
    with pytest.raises(DownloadError, match="circle"):
        pull(server)
    assert len(server.keys) == 11


# ---- sources -------------------------------------------------------------------------------------


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with one repository."""
    files = ["README.md", "model.safetensors", NAME]
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_key")

    def answer(handler: Handler) -> bool:
        if handler.path == "/api/models/ours/stories/revision/main":
            listed = {"siblings": [{"rfilename": name} for name in files]}
            return handler.plain(200, json.dumps(listed).encode())
        if handler.path == "/api/models/ours/two/revision/main":
            listed = {"siblings": [{"rfilename": f"{n}.awq.gguf"} for n in "ab"]}
            return handler.plain(200, json.dumps(listed).encode())
        if handler.path == "/api/models/ours/none/revision/main":
            return handler.plain(200, b'{"siblings": []}')
        if handler.path == "/api/models/ours/odd/revision/main":
            return handler.plain(200, b"<html>")
        known = ("/ours/stories/resolve/main/", "/ours/stories/resolve/v1.0/")
        return not handler.path.startswith(known) and handler.plain(404)

    server.fault = answer
    return server


def test_a_hub_id(hub: Server) -> None:
    source = find_source("ours/stories")
    assert source.address == f"{hub.address}/ours/stories/resolve/main/{NAME}"
    assert fetch(source, Seen()).read_bytes() == CONTENT
    assert hub.keys[-1] == "Bearer hf_key"
    assert find_source(f"ours/stories/sub/{NAME}@v1.0", "other.gguf") == Source(
        f"{hub.address}/ours/stories/resolve/v1.0/sub/{NAME}",
        "other.gguf",
        {"Authorization": "Bearer hf_key"},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ours/two", "several.*ours/two/a.awq.gguf"),
        ("ours/none", "awq-edge convert"),
        ("ours/odd", "cannot be read"),
        ("ours/missing", "no file"),
        ("stories", "no hub id"),
        ("", "no hub id"),
        ("../../etc/passwd", "no hub id"),
        ("ftp://example.org/a.gguf", "http, https or file"),
        ("http://example.org/", "--name"),
        ("http://example.org/a.bin", "--name"),
        ("http://example.org/..%2f..%2fa.gguf%0a", "--name"),
        ("http://example.org/-rf.gguf", "--name"),
        ("http://example.org/.hidden.gguf", "--name"),
    ],
)
def test_sources_that_are_none(text: str, words: str, hub: Server) -> None:
    with pytest.raises(AwqEdgeError, match=words):
        find_source(text)


def test_a_file_on_a_stick(tmp_path: Path) -> None:
    stick = tmp_path / "my models"
    stick.mkdir()
    (stick / NAME).write_bytes(CONTENT)
    source = find_source(f"file://{stick}/{NAME}")
    seen = Seen()
    seen.stop_after = 3 * CHUNK
    with pytest.raises(KeyboardInterrupt):
        fetch(source, seen)
    again = Seen()
    assert fetch(source, again).read_bytes() == CONTENT
    assert again.sizes == [(len(CONTENT), 3 * CHUNK)]
    with pytest.raises(DownloadError, match="cannot be read"):
        fetch(find_source(f"file://{stick}/missing.gguf"), Seen())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device"):
        with pytest.raises(DownloadError, match="no regular file"):
            fetch(find_source(f"file://{tmp_path}/{name}.gguf"), Seen())


@pytest.mark.parametrize("name", ["data", "manifest", "lock"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_download_goes_through_nothing_foreign(
    name: str, kind: str, server: Server, models: Path, tmp_path: Path
) -> None:
    models.mkdir()
    partial = models / f".{NAME}.partial"
    partial.mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    path = partial / name
    {"pipe": os.mkfifo, "link": lambda p: p.symlink_to(other), "folder": os.mkdir}[kind](path)
    assert partial_progress(partial) is None
    with pytest.raises(AwqEdgeError) as caught:
        pull(server)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert other.read_bytes() == b"mine"


def test_a_download_is_not_kept_behind_a_link(server: Server, models: Path, tmp_path: Path) -> None:
    models.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (models / f".{NAME}.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AwqEdgeError, match="is a link"):
        pull(server)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("size", ["1e999", "-1", "null", "[]", "NaN", '"x"', "1e400"])
def test_a_manifest_that_lies_is_begun_anew(size: str, server: Server, models: Path) -> None:
    seen = Seen()
    seen.stop_after = 2 * CHUNK
    with pytest.raises(KeyboardInterrupt):
        pull(server, seen)
    (partial,) = partial_folders()
    manifest = partial / "manifest"
    first, _, rest = manifest.read_text().partition("\n")
    told = json.loads(first)["size_bytes"]
    lie = first.replace(f'"size_bytes": {told}', f'"size_bytes": {size}')
    assert lie != first
    manifest.write_text(f"{lie}\n{rest}")
    partial_progress(partial)
    assert pull(server).read_bytes() == CONTENT


# ---- the commands --------------------------------------------------------------------------------


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "awq_edge.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_pull_list_run_and_rm(server: Server, models: Path) -> None:
    done = run("pull", f"{server.address}/model", "--name", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(models / NAME)
    (listed,) = json.loads(run("list", "--json").stdout)["models"]
    assert listed["name"] == NAME and listed["complete"] and listed["bytes"] == len(CONTENT)
    by_name = run("run", "stories", "-p", "Once", "-n", "5", "--temperature", "0", "-q")
    assert by_name.returncode == 0, by_name.stderr
    assert by_name.stdout == run(
        "run", str(STORIES), "-p", "Once", "-n", "5", "--temperature", "0", "-q"
    ).stdout  # fmt: skip
    assert run("inspect", "stories", "-q").returncode == 0
    assert run("rm", "stories").returncode == 0
    assert entries() == []
    gone = run("rm", "stories")
    assert gone.returncode == 1 and "awq-edge list" in gone.stderr
    assert "Traceback" not in gone.stderr
    missing = run("run", "stories", "-p", "Once")
    assert missing.returncode == 1 and "No such file" in missing.stderr


def test_rm_takes_unfinished_downloads_too(server: Server, models: Path) -> None:
    seen = Seen()
    seen.stop_after = 2 * CHUNK
    with pytest.raises(KeyboardInterrupt):
        pull(server, seen)
    shown = run("list").stdout
    assert NAME in shown and "pull it again" in shown
    assert remove("stories") > 0
    assert list(models.iterdir()) == []


def test_rm_frees_what_no_other_name_keeps(models: Path, tmp_path: Path) -> None:
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = tmp_path / "kept.gguf"
    kept.write_bytes(b"x" * 1000)
    kept.chmod(0o600)
    (models / "link.gguf").symlink_to(kept)
    os.link(kept, models / "other.gguf")
    (models / "alone.gguf").write_bytes(b"y" * 500)
    assert [remove(name) for name in ("link.gguf", "other.gguf", "alone.gguf")] == [0, 0, 500]
    assert kept.read_bytes() == b"x" * 1000 and list(models.iterdir()) == []


def test_a_folder_that_others_can_change_is_not_trusted(server: Server, models: Path) -> None:
    pull(server)
    models.chmod(0o777)
    assert entries() == [] and find("stories") is None
    with pytest.raises(AwqEdgeError, match="only you can change"):
        pull(server, force=True)
    models.chmod(0o700)
    (models / NAME).chmod(0o666)
    assert find("stories") is None


def test_models_of_deploy_are_known_by_name(models: Path) -> None:
    release = models.parent / "releases/one/models"
    release.mkdir(parents=True)
    (release / NAME).write_bytes(CONTENT)
    models.mkdir()
    (models.parent / "current").symlink_to("releases/one")
    (models / NAME).symlink_to(f"../current/models/{NAME}")
    assert find("stories") == models / NAME
    assert remove(NAME) == len(CONTENT)
    assert not (release / NAME).exists() and list(models.iterdir()) == []
