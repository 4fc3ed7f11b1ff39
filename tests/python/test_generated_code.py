"""Generated code: confined as a whole, and judged by what it cannot make up."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awq_edge.accuracy import code_runner
from awq_edge.accuracy.code_runner import Limits, run_python, run_tests
from awq_edge.errors import UnsupportedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")

# A second of the processor takes a busy machine many.
SMALL = Limits(cpu_seconds=1, wall_seconds=50, memory_bytes=1 << 29)


def namespaces_are_forbidden() -> bool:
    separate = ["unshare", "--user", "--net", "--pid", "--mount", "--fork", "true"]
    return not shutil.which("unshare") or bool(subprocess.run(separate, check=False).returncode)


needs_namespaces = pytest.mark.skipif(
    sys.platform == "linux" and namespaces_are_forbidden(),
    reason="this system forbids namespaces of processes",
)

# ---- whole programs ------------------------------------------------------------------------------


def test_code_that_ends_well_passes() -> None:
    assert run_python("assert sum(range(5)) == 10\nprint('done')\n").passed


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("def f(:", "SyntaxError"),
        ("x = '\udc80'", "UnicodeEncodeError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "status 0"),
        ("import os; os.write(1, b'x' * 32); os._exit(0)", "status 0"),
        ("input()", "EOFError"),
        ("import os; os.kill(os.getpid(), 11)", "status -11"),
    ],
)
def test_code_that_does_not_end_well_fails(code: str, words: str) -> None:
    outcome = run_python(code)
    assert not outcome.passed
    assert words in outcome.reason


FORK = "import os, time\nfor _ in range({count}):\n    if os.fork() == 0:\n        {body}\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("while True: pass", "1 s of CPU"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(b'x' * (1 << 21))", "File too large"),
        ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile 1: pass", "1 s"),
        ("while True: print('x' * 1000)", "1 s of CPU"),
    ],
)
def test_limits_of_a_process_hold(code: str, words: str) -> None:
    outcome = run_python(code, SMALL)
    assert not outcome.passed
    assert words in outcome.reason


def test_a_sleeper_ends_by_the_clock() -> None:
    # Starting Python alone takes a good part of a second on a busy machine.
    limits = replace(SMALL, cpu_seconds=10, wall_seconds=2)
    outcome = run_python("import time; time.sleep(60)", limits)
    assert not outcome.passed
    assert "still running" in outcome.reason


@pytest.mark.parametrize(
    ("body", "count", "words"),
    [
        ("x = bytearray(150 << 20); time.sleep(60)", 6, "537 MB of memory in all"),
        ("time.sleep(60)", 100, "64 processes"),
        ("os.setsid(); os.fork() and os._exit(0); time.sleep(60)", 80, "64 processes"),
        ("while True: pass", 4, "1 s of CPU"),
        # Each of them uses little, and they follow each other.
        ("sum(range(3_000_000)); os._exit(0)", 60, "1 s of CPU"),
    ],
)
def test_limits_of_all_processes_hold(body: str, count: int, words: str) -> None:
    code = FORK.format(count=count, body=body) + ("    os.wait()\n" if "range" in body else "")
    code += "time.sleep(60)\n"
    outcome = run_python(code, replace(SMALL, cpu_seconds=1 if "CPU" in words else 30))
    assert not outcome.passed
    assert words in outcome.reason


def test_threads_count_as_well() -> None:
    code = "import threading, time\nfor _ in range(100):\n"
    code += "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    outcome = run_python(code + "time.sleep(60)", Limits(memory_bytes=2 << 30))
    assert not outcome.passed
    assert "64 processes and threads" in outcome.reason


@needs_namespaces
@pytest.mark.parametrize(
    "code",
    [
        "for i in range(300): open(f'file{i}', 'w').close()",
        "for i in range(20): open(f'file{i}', 'wb').write(b'x' * (1 << 20))",
        "open({outside!r}, 'w')",
        "import os; os.mkdir({outside!r})",
        "import tempfile; tempfile.mkdtemp(dir='/tmp')",
        "open(sys_path := __import__('os').__file__, 'a')",
    ],
)
def test_files_are_few_and_all_in_one_folder(code: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outcome = run_python(code.format(outside=str(outside)) if "{outside" in code else code)
    assert not outcome.passed
    assert "OSError" in outcome.reason or "Error: [Errno" in outcome.reason
    assert not outside.exists()


def test_small_files_can_be_written() -> None:
    code = "import multiprocessing, tempfile\nopen('a', 'w').write('x')\n"
    code += "assert open('a').read() == 'x'\nmultiprocessing.Lock()\n"
    code += "tempfile.TemporaryFile().write(b'y')\n"
    assert run_python(code) == code_runner.Outcome(True, "")


def running(name: str) -> list[int]:
    """Processes that call themselves so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().split()
            except OSError:
                continue
            if words[1] == f"({name})" and words[2] != "Z":
                found.append(int(entry.name))
    return found


def named(name: str) -> str:
    return f"import os, time\nopen('/proc/self/comm', 'w').write({name!r})\n"


@pytest.mark.parametrize(
    ("hiding", "ending"),
    [
        ("pass", ""),
        ("pass", "time.sleep(60)"),
        ("os.setsid()\n    if os.fork(): os._exit(0)", "time.sleep(60)"),
        ("os.setsid()\n    if os.fork(): os._exit(0)", ""),
    ],
)
def test_children_of_the_code_are_ended_too(hiding: str, ending: str) -> None:
    name = f"c{secrets.token_hex(6)}"
    code = named(name) + f"if os.fork() == 0:\n    {hiding}\n    time.sleep(60)\n"
    code += f"time.sleep(0.3)\n{ending}\n"
    limits = Limits(wall_seconds=1.5) if ending else Limits()
    assert run_python(code, limits).passed == (not ending)
    assert running(name) == []


def test_everything_ends_with_the_program_that_measures() -> None:
    name = f"c{secrets.token_hex(6)}"
    code = named(name) + "time.sleep(60)"
    program = f"from awq_edge.accuracy.code_runner import run_python\nrun_python({code!r})\n"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        deadline = time.monotonic() + 60
        while not running(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running(name)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while running(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(name) == []


CONNECT = """
import socket
with socket.socket() as s:
    s.settimeout(3)
    s.connect(("127.0.0.1", {port}))
"""


def test_code_reaches_no_network_not_even_this_machine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert subprocess.run([sys.executable, "-c", CONNECT.format(port=port)]).returncode == 0
        outcome = run_python(CONNECT.format(port=port))
    assert not outcome.passed
    assert "Error" in outcome.reason
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        assert not run_python(code).passed


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.mount(b'tmpfs', b'/mnt', b'tmpfs', 0, None)",
        "libc.umount2(b'/proc', 0)",
        "libc.memfd_create(b'x', 0)",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.syscall(425, 8, 0)",
        "libc.setns(0, 0)",
    ],
)
def test_ways_out_are_closed(call: str) -> None:
    code = f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nassert {call} == -1\n"
    code += "assert ctypes.get_errno() == 13, ctypes.get_errno()\n"
    assert run_python(code) == code_runner.Outcome(True, "")


def test_the_code_has_no_rights() -> None:
    code = "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    code += "assert int(status['CapEff'], 16) == int(status['CapPrm'], 16) == 0\n"
    code += "assert int(status['NoNewPrivs']) == 1\n"
    assert run_python(code) == code_runner.Outcome(True, "")


def test_a_system_that_cannot_confine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    crippled = code_runner._PROGRAM.replace(
        "main()\n",
        "from awq_edge.accuracy.confined import boundaries\n"
        "boundaries.enter_namespaces = lambda *_: False\n"
        "boundaries.give_up_rights = lambda: False\n"
        "main()\n",
    )
    monkeypatch.setattr(code_runner, "_PROGRAM", crippled)
    with pytest.raises(UnsupportedError, match="network"):
        run_python("pass")
    with pytest.raises(UnsupportedError, match="network"):
        run_tests("", "", [])


def test_without_namespaces_the_filter_and_the_census_remain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = code_runner._PROGRAM.replace(
        "main()\n",
        "from awq_edge.accuracy.confined import boundaries\n"
        "boundaries.enter_namespaces = lambda *_: False\n"
        "main()\n",
    )
    monkeypatch.setattr(code_runner, "_PROGRAM", alone)
    assert run_python("assert True").passed
    assert "Permission" in run_python("import socket; socket.socket()").reason
    name = f"c{secrets.token_hex(6)}"
    hidden = "os.setsid(); os.fork() and os._exit(0); time.sleep(60)"
    code = named(name) + FORK.format(count=70, body=hidden) + "time.sleep(60)"
    assert "64 processes" in run_python(code).reason
    assert running(name) == []


# ---- tests of code -------------------------------------------------------------------------------

RIGHT = "def double(x):\n    return 2 * x\n"
TESTS = "assert double(4) == 8\nassert double('ab') == 'abab'\nassert double([1]) == [1, 1]\n"


def test_right_code_passes_and_wrong_code_does_not() -> None:
    assert run_tests(RIGHT, TESTS, ["double"]) == code_runner.Outcome(True, "")
    assert "AssertionError" in run_tests(RIGHT.replace("2", "3"), TESTS, ["double"]).reason
    assert "NameError" in run_tests(RIGHT.replace("double", "triple"), TESTS, ["double"]).reason
    assert "SyntaxError" in run_tests("def double(", TESTS, ["double"]).reason


FORGERIES = {
    "says yes to every comparison": """
class Yes:
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __eq__
    def __bool__(self): return True
def double(x): return Yes()
""",
    "a list that says yes": """
class Yes(list):
    def __eq__(self, other): return True
def double(x): return Yes([0])
""",
    "a number that says yes": """
class Yes(int):
    def __eq__(self, other): return True
    def __int__(self): return 8
def double(x): return Yes(3)
""",
    "leaves": "import os\nos._exit(0)",
    "leaves when called": "import os\ndef double(x): os._exit(0)",
    "exits": "import sys\ndef double(x): sys.exit(0)",
    "exits at once": "import sys\nsys.exit(0)",
    "changes built-in functions": """
import builtins
builtins.AssertionError = type('Quiet', (BaseException,), {})
for name in ('all', 'any', 'abs', 'len', 'sorted', 'isinstance'):
    setattr(builtins, name, lambda *a, **k: True)
def double(x): return 0
""",
    "prints at the end": """
import atexit, os
atexit.register(lambda: os.write(1, b'{"passed": true, "reason": ""}'))
def double(x): raise SystemExit(0)
""",
    "writes to whatever is open": """
import json, os, struct
for text in ('{"passed": true}', '{"passed": true, "reason": ""}', '{"value": true}', '{}'):
    message = text.encode()
    for message in (message, struct.pack('<I', len(message)) + message):
        for number in range(1200):
            try: os.write(number, message)
            except OSError: pass
def double(x): return 0
""",
    "repeats what it reads": """
import os
for number in range(3, 1200):
    try:
        os.set_blocking(number, False)
        text = os.read(number, 1 << 16)
    except OSError: continue
    for other in range(1200):
        try: os.write(other, text)
        except OSError: pass
os._exit(0)
""",
    "ends its parents": """
import os, signal
for number in (os.getppid(), 1, 0, -1):
    try: os.kill(number, signal.SIGKILL)
    except OSError: pass
def double(x): return 0
""",
    "changes its caller": """
import sys
for number in range(1, 9):
    try: frame = sys._getframe(number)
    except ValueError: break
    frame.f_globals['_run_tests'] = frame.f_globals['_raised'] = lambda *a: ''
for module in list(sys.modules.values()):
    if hasattr(module, 'send'): module.send(4, {'passed': True})
def double(x): return 0
""",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_passing_cannot_be_made_up(forgery: str) -> None:
    outcome = run_tests(FORGERIES[forgery], TESTS, ["double"], limits=Limits(wall_seconds=5))
    assert not outcome.passed
    assert outcome.reason


@pytest.mark.parametrize(
    "forgery",
    ["leaves", "exits at once", "writes to whatever is open", "repeats what it reads"],
)
def test_the_end_of_a_program_cannot_be_made_up(forgery: str) -> None:
    leaving = "\nimport os, sys; sys.argv and os._exit(0)\nassert False\n"
    assert not run_python(FORGERIES[forgery] + leaving, Limits(wall_seconds=5)).passed


def test_settings_of_a_program_are_nowhere_to_be_read() -> None:
    code = "import sys, os\nassert len(sys.argv) == 1, sys.argv\n"
    code += "assert b'tests' not in open('/proc/self/cmdline', 'rb').read()\n"
    assert run_python(code).passed


READ_MEMORY = """
def double(x):
    wanted = bytes(reversed(b'{backwards}'))
    found = 0
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            begin, end = (int(part, 16) for part in span.split('-'))
            if 'rw' in rights and end - begin < 1 << 26:
                memory.seek(begin)
                try: found += memory.read(end - begin).count(wanted)
                except OSError: pass
    return found
"""


def test_the_tests_are_not_in_the_memory_of_the_code() -> None:
    # The code looks for it by what it is backwards; looking puts one or two copies there itself.
    word = "expected" + secrets.token_hex(8)
    code = READ_MEMORY.replace("{backwards}", word[::-1])
    few = run_tests(code, "assert 0 < double(1) < 6", ["double"], given=f"w = {word!r}")
    assert few.passed, few.reason
    many = run_tests(
        code + f"\nk = [{word!r} + str(i) for i in range(9)]\n", "assert double(1) > 8", ["double"]
    )
    assert many.passed, many.reason


@needs_namespaces
def test_the_tests_are_in_no_process_that_the_code_can_see() -> None:
    code = "import os\ndef double(x):\n    return [n for n in os.listdir('/proc') if n.isdigit()]\n"
    outcome = run_tests(code, "found = double(1)\nassert len(found) <= 2, found", ["double"])
    assert outcome.passed, outcome.reason


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 2**53, -(2**70), 0.1, float("inf"), 1e-320, 1 + 2j, "", "é\ud800\0"),
        *(b"", b"\0\xff", bytearray(b"ab"), range(3, 9, 2), (), (1,), [], [[1], (2, [3.0])]),
        *({1, 2}, frozenset({3, 4}), {}, {"a": [1], 2: {3: ()}, (1, 2): None}),
    ],
    ids=repr,
)
def test_plain_values_come_across_whole(value: Any) -> None:
    tests = f"v = {value!r}\n" if value == value else ""
    tests = tests.replace("inf", "float('inf')")
    tests += "r = same(v)\nassert r == v and type(r) is type(v), r\nassert repr(r) == repr(v)\n"
    assert run_tests("def same(x): return x", tests, ["same"]) == code_runner.Outcome(True, "")


def test_values_of_other_kinds_are_what_they_hold() -> None:
    code = """
from collections import Counter, OrderedDict, namedtuple
P = namedtuple('P', 'x y')
def counted(s): return Counter(s)
def ordered(): return OrderedDict([(2, 3)])
def point(): return P(1, 2)
def walked(n): return (i * i for i in range(n))
def grown(xs): xs.append(4); xs[0] = {'k': 1}
def failing(): raise KeyError('gone')
class Node:
    def __init__(self, v): self.v, self.next = v, None
    def total(self): return self.v + (self.next.total() if self.next else 0)
def summed(node): return node.total()
def kind(value, expected): return isinstance(value, expected), expected
LIMIT = 7
"""
    tests = """
assert counted('aab') == {'a': 2, 'b': 1}
assert ordered() == {2: 3} and point() == (1, 2) and LIMIT == 7
assert list(walked(4)) == [0, 1, 4, 9]
xs = [1, 2]
assert grown(xs) is None and xs == [{'k': 1}, 2, 4]
try:
    failing()
except KeyError as error:
    assert 'gone' in str(error)
else:
    raise AssertionError('nothing raised')
a, b = Node(1), Node(2)
a.next = b
b.v = 5
assert a.total() == summed(a) == 6 and a.next.v == 5
assert a == a and a != b
assert kind(3, int) == (True, int) and kind(3, str) == (False, str)
"""
    names = ["counted", "ordered", "point", "walked", "grown", "failing", "Node", "summed"]
    names += ["kind", "LIMIT"]
    assert run_tests(code, tests, names) == code_runner.Outcome(True, "")


@pytest.mark.parametrize(
    "code",
    [
        "def double(x): return [0] * (1 << 26)",
        "def double(x):\n    a = []\n    a.append(a)\n    return a",
        "def double(x):\n    a = []\n    for _ in range(5000): a = [a]\n    return a",
        "def double(x):\n    while True: yield 1",
        "def double(x): return '\\0' * (1 << 25)",
        "def double(x): raise type('Odd', (BaseException,), {})('o')",
        "def double(x): return double",
    ],
)
def test_values_without_end_end_in_a_failure(code: str) -> None:
    outcome = run_tests(code, "assert list(double(1)) == 8", ["double"], limits=SMALL)
    assert not outcome.passed
    assert outcome.reason


def test_limits_count_code_and_tests_together() -> None:
    outcome = run_tests("def double(x):\n    while True: pass", TESTS, ["double"], limits=SMALL)
    assert "1 s of CPU" in outcome.reason
    outcome = run_tests(RIGHT, "while True: pass", ["double"], limits=SMALL)
    assert "1 s of CPU" in outcome.reason


def test_published_solutions_tell_what_tests_may_use() -> None:
    from awq_edge.accuracy.local_tasks import _published

    code = "import math\nfrom re import match as m\nX = Y = 1\ndef f(): pass\nclass C: pass\n"
    assert _published(code) == (
        ["X", "Y", "f", "C"],
        "import math\nfrom re import match as m",
    )
    assert _published("def f(") == ([], "")
