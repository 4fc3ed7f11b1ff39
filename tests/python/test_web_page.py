"""The chat page of ``serve``: rules about its files, and a person's way through it in a browser."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser

from awq_edge.serve import page
from awq_edge.serve.page import _FILES, HEADERS

FOLDER = Path(page.__file__).parent
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("page.*")}
TEXTS["index.html"] = (FOLDER / "index.html").read_text(encoding="utf-8")

MARKDOWN = """\
# Weather

It **rains** in `Bristol`, <img src=x onerror="document.title='broken'"> and *snows*.
A [link](https://example.org/a) and a [bad one](javascript:alert(1)).

1. one
   - inner
2. two

| a | b |
|---|---|
| 1 | <b>2</b> |

```html
<script>document.title = 'broken'</script>
```
"""


# ---- the files -----------------------------------------------------------------------------------


def test_the_page_is_small_and_has_no_outside_asset() -> None:
    assert sum(len(text.encode()) for text in TEXTS.values()) < 60_000
    assert {name for name, _ in _FILES.values()} == set(TEXTS)
    for name, text in TEXTS.items():
        outside = re.findall(r"https?:(?!\\)", text)
        assert not outside, (name, outside)
        assert "@import" not in text and "url(" not in text


def test_text_of_others_never_becomes_html() -> None:
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "DOMParser",
    ):
        assert word not in TEXTS["page.js"]
    assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=|<style", TEXTS["index.html"])


def test_the_policy_allows_this_server_alone() -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src"):
        assert policy[kind] == "'self'"


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_the_contrast_that_wcag_asks_for(theme: int) -> None:
    colours = dict(
        re.findall(r"--([\w-]+): (#\w{6})", TEXTS["page.css"].split("--back")[theme + 1])
    )
    colours["back"] = re.findall(r"--back: (#\w{6})", TEXTS["page.css"])[theme]
    pairs = [(text, back) for text in ("text", "soft", "bad") for back in ("back", "face", "mine")]
    pairs += [("on-accent", "accent"), ("accent", "back"), ("text", "code")]
    for text, back in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


# ---- in a browser --------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """The page, and an API that says what a test has put down."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.pieces: list[dict[str, Any]] = [{"content": "Good "}, {"content": "morning."}]
        self.go_on = threading.Event()
        self.go_on.set()
        self.left = threading.Event()
        self.status = 200
        self.health: dict[str, Any] = {
            "status": "ok",
            "memory_bytes": 812_000_000,
            "temperature_celsius": 81.3,
            "throttled": True,
        }
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, content: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.path in _FILES:
            name, kind = _FILES[self.path]
            self._send((FOLDER / name).read_bytes(), kind, **HEADERS)
        elif self.path == "/v1/models":
            seeing = {"id": "novels-chat", "input_modalities": ["text", "image"]}
            self._json({"data": [seeing, {"id": "other"}]})
        elif self.path == "/health":
            self._json(self.server.health)
        else:
            self._send(b"", "text/plain", 404)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.status != 200:
            self._json({"error": {"message": "The key is wrong."}}, self.server.status)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for piece in self.server.pieces:
                self._event({"choices": [{"delta": piece}]})
                while not self.server.go_on.wait(0.05):
                    self.wfile.write(b": ping\n\n")
                    self.wfile.flush()
            self._event({"choices": [], "usage": {"completion_tokens": 7}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left.set()

    def _event(self, value: object) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.go_on.set()
        running.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def at(browser: Browser, server: Server) -> Iterator[Browser]:
    """A browser at the page, with nothing kept from before."""
    browser.look(1100, 760)
    browser.messages.clear()
    browser.open(server.address)
    browser.until("document.querySelectorAll('#model option').length === 2")
    yield browser
    said = [m for m in browser.messages if m.get("method") == "Runtime.exceptionThrown"]
    assert not said, said
    blocked = [m for m in browser.messages if "Content Security Policy" in json.dumps(m)]
    assert not blocked, blocked


def say(page: Browser, text: str) -> None:
    page.value("document.getElementById('input').focus()")
    page.type(text)
    page.enter()


def answered(page: Browser, count: int = 1) -> str:
    page.until(
        "document.getElementById('stop').hidden && "
        f"document.querySelectorAll('article.assistant').length === {count}"
    )
    return str(page.value("[...document.querySelectorAll('article.assistant')].at(-1).innerText"))


def test_a_conversation(at: Browser, server: Server) -> None:
    say(at, "Hello!")
    assert "Good morning." in answered(at)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Hello!"}]
    assert server.asked[0]["stream"] is True and server.asked[0]["model"] == "novels-chat"
    say(at, "And now?")
    answered(at, 2)
    assert [m["content"] for m in server.asked[1]["messages"]] == [
        "Hello!",
        "Good morning.",
        "And now?",
    ]
    assert at.value("document.getElementById('announce').textContent") == "Model: Good morning."
    # It is still there when the page is opened again.
    at.open(server.address)
    at.until("document.querySelectorAll('article').length === 4")
    assert at.value("document.querySelector('#conversations .title').textContent") == "Hello!"


def test_markdown_is_drawn_and_html_is_text(at: Browser, server: Server) -> None:
    server.pieces = [{"content": letter} for letter in MARKDOWN]
    say(at, "Well?")
    answered(at)
    inside = "document.querySelector('article.assistant .text')"
    assert at.value("document.title") == "awq-edge"
    for selector, count in {"img": 0, "script": 0, "a": 1, "strong": 1, "em": 1, "ol > li": 2,
                            "ol ul li": 1, "td": 2, "pre code": 1, "h3": 1}.items():  # fmt: skip
        assert at.value(f"{inside}.querySelectorAll('{selector}').length") == count, selector
    text = at.value(f"{inside}.textContent")
    for piece in ("<img src=x onerror=", "javascript:alert(1)", "<b>2</b>", "<script>document"):
        assert piece in text
    link = at.value(f"(a => [a.href, a.rel, a.target])({inside}.querySelector('a'))")
    assert link[0] == "https://example.org/a" and "noopener" in link[1] and link[2] == "_blank"


def test_stop_edit_and_regenerate(at: Browser, server: Server) -> None:
    server.go_on.clear()
    say(at, "Tell me a tale.")
    at.until("document.querySelector('article.assistant .text').textContent.includes('Good')")
    at.press("Escape", 27)
    assert "Good" in answered(at) and "morning" not in answered(at)
    assert server.left.wait(30), "the server was not told"
    server.go_on.set()
    at.click("article.assistant .tools button:last-child")  # regenerate
    at.until("document.querySelector('article.assistant .text').textContent === 'Good morning.'")
    answered(at)
    at.click("article.user .tools button")  # edit
    at.until("document.activeElement.tagName === 'TEXTAREA'")
    at.type(" Please.")
    at.enter()
    at.until("document.querySelector('article.user').innerText.includes('Please')")
    answered(at)
    assert [m["content"] for m in server.asked[-1]["messages"]] == ["Tell me a tale. Please."]
    assert len(server.asked) == 3


def test_settings_go_with_every_request(at: Browser, server: Server) -> None:
    at.click("#open-settings")
    at.until("document.getElementById('settings').open")
    for name, value in {
        "system": "Be brief.", "temperature": "0", "top-p": "0.9", "seed": "7",
        "max-tokens": "12", "key": "secret",
    }.items():  # fmt: skip
        at.value(f"document.getElementById('set-{name}').value = {json.dumps(value)}")
    at.click("#settings-save")
    say(at, "Hello!")
    answered(at)
    asked = server.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: asked[name] for name in ("temperature", "top_p", "seed", "max_tokens")} == {
        "temperature": 0, "top_p": 0.9, "seed": 7, "max_tokens": 12,
    }  # fmt: skip
    assert server.keys == ["Bearer secret"]


def test_reasoning_and_errors_stand_apart(at: Browser, server: Server) -> None:
    server.pieces = [{"reasoning_content": "Hmm."}, {"content": "Yes."}]
    say(at, "Well?")
    answered(at)
    assert at.value("document.querySelector('.thought div').textContent") == "Hmm."
    assert at.value("document.querySelector('.assistant .text').textContent") == "Yes."
    server.status = 401
    say(at, "And?")
    assert "The key is wrong." in answered(at, 2)
    server.status = 200
    say(at, "Hello?")
    answered(at, 3)
    # What got no answer is not said again: the two take turns.
    assert [m["content"] for m in server.asked[-1]["messages"]] == ["Well?", "Yes.", "Hello?"]


def test_the_machine_is_shown(at: Browser, server: Server) -> None:
    at.until("document.getElementById('temperature').textContent === '81 °C'")
    assert at.value("document.getElementById('temperature').className") == "bad"
    assert at.value("document.getElementById('memory').textContent") == "812 MB"
    assert at.value("document.getElementById('throttling').textContent") == "slowed down"
    server.health = {**server.health, "temperature_celsius": None, "throttled": None}
    at.value("health()")
    at.until("document.getElementById('temperature').textContent === 'unknown'")
    assert at.value("document.getElementById('throttling').textContent") == "unknown"


def test_conversations_are_kept_apart(at: Browser, server: Server, tmp_path: Path) -> None:
    say(at, "First")
    answered(at)
    at.click("#new")
    say(at, "Second")
    answered(at)
    assert [m["content"] for m in server.asked[-1]["messages"]] == ["Second"]
    titles = "[...document.querySelectorAll('#conversations .title')].map(e => e.textContent)"
    assert at.value(titles) == ["Second", "First"]
    at.click("#conversations li:last-child .title")
    assert at.value("document.querySelector('article.user .text').textContent") == "First"
    at.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    at.click("#conversations li:last-child [aria-label^=Export]")
    at.until("true")
    for _ in range(200):
        if (tmp_path / "First.json").exists():
            break
        at.value("new Promise(done => setTimeout(done, 50))")
    kept = json.loads((tmp_path / "First.json").read_text())
    assert [m["content"] for m in kept["messages"]] == ["First", "Good morning."]


def test_everything_has_a_name_and_is_reached_by_keyboard(at: Browser, server: Server) -> None:
    say(at, "Hello!")
    answered(at)
    nodes = at.call("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "textbox", "combobox", "spinbutton", "link", "region", "navigation")
    seen = set()
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in named and not node["ignored"]:
            seen.add(role)
            assert node.get("name", {}).get("value"), node
    assert {"button", "textbox", "combobox"} <= seen
    at.value("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        at.press("Tab", 9)
        reached.append(
            at.value("document.activeElement.id || document.activeElement.ariaLabel || 'body'")
        )
    for name in ("model", "open-settings", "new", "messages", "input", "send", "Another answer",
                 "attach"):  # fmt: skip
        assert name in reached, (name, reached)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("device", ["phone", "desktop"])
def test_nothing_overflows(device: str, theme: str, at: Browser, server: Server) -> None:
    """Set AWQ_EDGE_SCREENSHOTS to a folder to look at what a person sees."""
    width, height = (360, 640) if device == "phone" else (1100, 760)
    at.look(width, height, dark=theme == "dark", phone=device == "phone")
    server.pieces = [{"reasoning_content": "Let me see."}, {"content": MARKDOWN + "\n" + "x" * 300}]
    say(at, "What is the weather like in a town with a very long name? " * 3)
    answered(at)
    assert at.value("document.documentElement.scrollWidth") <= width
    assert at.value("document.querySelector('#send').getBoundingClientRect().right") <= width
    back = at.value("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(23, 22, 20)" if theme == "dark" else "rgb(251, 250, 248)")
    folder = os.environ.get("AWQ_EDGE_SCREENSHOTS")
    if folder:
        Path(folder, f"{device}-{theme}.png").write_bytes(base64.b64decode(at.screenshot()))
    if device == "phone":
        at.click("#menu")
        assert at.value("getComputedStyle(document.getElementById('side')).display") == "flex"
        if folder:
            path = Path(folder, f"{device}-{theme}-menu.png")
            path.write_bytes(base64.b64decode(at.screenshot()))
        at.press("Escape", 27)
        assert at.value("getComputedStyle(document.getElementById('side')).display") == "none"


# ---- pictures ------------------------------------------------------------------------------------

SCENES = Path(__file__).resolve().parents[2] / "examples" / "scenes-8m" / "pictures"
PICTURES = sorted(SCENES.glob("*.png"))[:3]
THUMBNAILS = "document.querySelectorAll('#pictures img').length"


def choose(page: Browser, *paths: Path) -> None:
    """What the browser's own window of files does."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=field)


def sent(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_the_page_and_the_server_have_the_same_limits() -> None:
    from awq_edge.serve import picture_parts
    from awq_edge.vision.preprocessing import MAX_SIDE

    found = re.search(
        r"PICTURE_BYTES = (.+?), PICTURE_PIXELS = (.+?), PICTURE_SIDE = (\d+), PICTURES = (\d+);",
        TEXTS["page.js"],
    )
    assert found is not None
    size, pixels, side, count = found.groups()
    assert size.split(" * ") == ["12", "1024", "1024"]
    assert picture_parts.MOST_PICTURE_BYTES == 12 << 20
    assert float(pixels) == picture_parts.MOST_PIXELS
    assert (int(side), int(count)) == (MAX_SIDE, picture_parts.MOST_PICTURES)


def test_pictures_are_attached_removed_and_sent_as_they_are(at: Browser, server: Server) -> None:
    at.click("#attach")  # opens the system's window, which a headless browser does not have
    choose(at, PICTURES[0], PICTURES[1])
    at.until(f"{THUMBNAILS} === 2")
    choose(at, PICTURES[2])
    at.until(f"{THUMBNAILS} === 3")
    names = "[...document.querySelectorAll('#pictures img')].map(i => i.alt)"
    assert at.value(names) == [path.name for path in PICTURES]
    at.click(f"[aria-label='Remove {PICTURES[1].name}']")
    at.until(f"{THUMBNAILS} === 2")
    assert "is removed" in at.value("document.getElementById('announce').textContent")
    assert at.value("document.activeElement.id") == "input"
    say(at, "What is this?")
    answered(at)
    text = {"type": "text", "text": "What is this?"}
    parts = [sent(PICTURES[0]), sent(PICTURES[2]), text]
    assert server.asked[0]["messages"] == [{"role": "user", "content": parts}]
    assert at.value(THUMBNAILS) == 0
    assert at.value("document.querySelectorAll('article.user img').length") == 2
    # They come again with the next turn, and when the page is opened anew.
    say(at, "And now?")
    answered(at, 2)
    assert server.asked[1]["messages"][0]["content"] == parts
    at.open(server.address)
    at.until("document.querySelectorAll('article.user img').length === 2")
    at.until("!document.getElementById('attach').hidden")
    say(at, "Again?")
    answered(at, 3)
    assert server.asked[2]["messages"][0]["content"] == parts
    # An edited question keeps them.
    at.click("article.user .tools button")
    at.until("document.activeElement.tagName === 'TEXTAREA'")
    at.type("!")
    at.enter()
    answered(at)
    assert server.asked[3]["messages"][0]["content"] == [
        *parts[:2],
        {**text, "text": "What is this?!"},
    ]
    # What no conversation shows is not kept.
    at.value("confirm = () => true")
    at.click("#conversations [aria-label^=Delete]")
    kept = "inStore('readonly', s => s.getAllKeys()).then(keys => keys.length)"
    at.until(f"{kept}.then(count => count === 0)")


def test_pictures_are_pasted_and_dropped(at: Browser, server: Server) -> None:
    data = base64.b64encode(PICTURES[0].read_bytes()).decode()
    transfer = (
        f"(() => {{ const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));"
        "const held = new DataTransfer();"
        "held.items.add(new File([bytes], 'here.png', {type: 'image/png'})); return held; })()"
    )
    at.value(
        "document.getElementById('input').dispatchEvent(new ClipboardEvent('paste', "
        f"{{clipboardData: {transfer}, bubbles: true, cancelable: true}}))"
    )
    at.until(f"{THUMBNAILS} === 1")
    at.value(
        "document.getElementById('messages').dispatchEvent(new DragEvent('drop', "
        f"{{dataTransfer: {transfer}, bubbles: true, cancelable: true}}))"
    )
    at.until(f"{THUMBNAILS} === 2")
    at.value("document.getElementById('input').focus()")
    at.enter()  # pictures alone are a message
    answered(at)
    assert server.asked[0]["messages"][0]["content"] == [sent(PICTURES[0])] * 2


def test_what_is_no_picture_and_what_a_model_cannot_see_is_told(
    at: Browser, server: Server, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(PICTURES[0].read_bytes()[:100])
    choose(at, broken)
    at.until("document.getElementById('notice').textContent.includes('cannot read broken.png')")
    at.value("document.getElementById('model').value = 'other'")
    at.value("document.getElementById('model').dispatchEvent(new Event('change'))")
    assert at.value("document.getElementById('attach').hidden") is True
    choose(at, PICTURES[0])
    at.until("document.getElementById('notice').textContent.includes('reads text alone')")
    assert at.value(THUMBNAILS) == 0


def test_only_what_is_too_large_is_made_smaller(at: Browser) -> None:
    def fitted(size: int, kind: str) -> Any:
        return at.value(
            "(async () => { const image = new OffscreenCanvas(400, 300);"
            "image.getContext('2d').fillRect(0, 0, 9, 9);"
            f"const file = {{size: {size}, type: '{kind}'}};"
            "const made = await fitting(file, await createImageBitmap(image));"
            "if (made === file) return 'as it is';"
            "const seen = await createImageBitmap(made);"
            "return [made.type, seen.width, seen.height, made.size < PICTURE_BYTES]; })()"
        )

    assert fitted(5_000_000, "image/jpeg") == "as it is"
    assert fitted(13_000_000, "image/jpeg") == ["image/jpeg", 400, 300, True]
    assert fitted(5_000, "image/avif") == ["image/jpeg", 400, 300, True]
    scaled = at.value(
        "fitting({size: 9, type: 'image/png'}, Object.assign(new OffscreenCanvas(20000, 100)))"
        ".then(createImageBitmap).then(seen => [seen.width, seen.height])"
    )
    assert scaled == [16384, 82]


@pytest.mark.parametrize("device", ["phone", "desktop"])
def test_pictures_fit_the_screen(device: str, at: Browser, server: Server) -> None:
    """Set AWQ_EDGE_SCREENSHOTS to a folder to look at what a person sees."""
    width, height = (360, 640) if device == "phone" else (1100, 760)
    at.look(width, height, dark=device == "phone", phone=device == "phone")
    choose(at, *PICTURES)
    at.until(f"{THUMBNAILS} === 3")
    say(at, "What do these show?")
    answered(at)
    choose(at, *PICTURES, *PICTURES)
    at.until(f"{THUMBNAILS} === 6")
    assert at.value("document.documentElement.scrollWidth") <= width
    assert at.value("document.querySelector('#send').getBoundingClientRect().right") <= width
    camera = at.value("getComputedStyle(document.getElementById('photograph')).display")
    assert (camera != "none") == (device == "phone")
    for image in ("#pictures img", "article.user img"):
        drawn = at.value(f"(i => [i.naturalWidth > 0, i.alt])(document.querySelector('{image}'))")
        assert drawn == [True, PICTURES[0].name]
    nodes = at.call("Accessibility.getFullAXTree")["nodes"]
    names = {node.get("name", {}).get("value") for node in nodes if not node["ignored"]}
    assert {"Attach pictures", f"Remove {PICTURES[0].name}", "Pictures of this message"} <= names
    folder = os.environ.get("AWQ_EDGE_SCREENSHOTS")
    if folder:
        Path(folder, f"pictures-{device}.png").write_bytes(base64.b64decode(at.screenshot()))


# ---- with the server itself ----------------------------------------------------------------------


def test_the_server_gives_the_page_and_answers_it(
    browser: Browser, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import Server as RealServer

    from awq_edge.running_servers import running_servers

    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path))  # the server's and ours

    running = RealServer(chat_file)
    try:
        assert [server.address for server in running_servers()].count(running.url) == 1
        browser.look(390, 780)
        browser.messages.clear()
        browser.open(f"{running.url}/")
        browser.until("document.querySelectorAll('#model option').length === 1")
        say(browser, "Good morning!")
        assert len(answered(browser).split()) > 2
        assert browser.value("document.querySelector('.error')") is None
        assert browser.value("document.getElementById('memory').textContent").endswith("MB")
        assert "Content Security Policy" not in json.dumps(browser.messages)
    finally:
        running.stop()
    assert running.url not in [server.address for server in running_servers()]
