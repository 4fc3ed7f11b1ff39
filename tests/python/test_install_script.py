"""install.sh: every check ends in one sentence, and nothing is half-installed.

The machine is made up by programs that stand before the real ones on the PATH. The bundle is made
up too, but what is made of it is real. A real bundle on an emulated board is
in test_emulated_board.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from boards import STORIES
from stand_in import HERE, needs, stand_in_bundle, write_script, write_sums

from awq_edge import __version__
from awq_edge.profiles import load_profile

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="install.sh is for Linux, and this is another system"
)
SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)] or ["sh"]


class Machine:
    """A home folder, and programs that lie about the machine."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.stubs = folder / "stubs"
        self.home.mkdir()
        self.stubs.mkdir()
        self.says("python3", f'exec {sys.executable} "$@"')

    def says(self, program: str, script: str) -> None:
        path = self.stubs / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(
        self,
        script: Path,
        *arguments: str,
        shell: str = "sh",
        folder: Path | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        command = [shell, "sh"] if shell == "busybox" else [shell]
        return subprocess.run(
            [*command, str(script), *arguments],
            cwd=folder,
            env={"HOME": str(self.home), "PATH": f"{self.stubs}:{os.defpath}", **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def begin(self, script: Path) -> subprocess.Popen[bytes]:
        """Starts an installation; the shell becomes the installer, so its id is this one."""
        return subprocess.Popen(
            ["sh", str(script)],
            env={"HOME": str(self.home), "PATH": f"{self.stubs}:{os.defpath}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("install.sh: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0]


# ---- the checks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_fit_machine_is_described(shell: str, machine: Machine, tmp_path: Path) -> None:
    done = machine.run(write_script(tmp_path, needs()), "--check", shell=shell)
    assert done.returncode == 0, done.stderr
    values = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert values["machine"] == platform.machine()
    assert values["python"] == HERE
    assert values["prefix"] == f"{machine.home}/.local/share/awq-edge"
    assert int(values["memory_free_kb"]) > 0
    assert int(values["disk_free_kb"]) > 0
    assert machine.files == []


@pytest.mark.parametrize(
    ("program", "answer", "words"),
    [
        ("uname", "case $1 in -s) echo Darwin;; *) echo arm64;; esac", ("for Linux", "Darwin")),
        (
            "uname",
            "case $1 in -s) echo Linux;; *) echo armv7l;; esac",
            ("32-bit (armv7l)", "64-bit system"),
        ),
        (
            "uname",
            "case $1 in -s) echo Linux;; *) echo riscv64;; esac",
            ("riscv64", "awq-edge bundle FILE --target"),
        ),
        (
            "getconf",
            "case $1 in LONG_BIT) echo 32;; *) echo glibc 2.36;; esac",
            ("kernel is 64-bit but the programs are 32-bit", "64-bit system"),
        ),
        (
            "getconf",
            "case $1 in LONG_BIT) echo 64;; *) echo glibc 2.28;; esac",
            ("glibc 2.28", "2.31 is the oldest"),
        ),
        ("getconf", "case $1 in LONG_BIT) echo 64;; *) exit 1;; esac", ("no glibc", "Debian")),
        ("sed", "case $2 in *MemTotal*) echo 1000000;; *) echo 1000;; esac", ("memory", "0 MB of")),
        ("df", "echo head; echo /dev/root 900 800 100 89% /", ("disk", "--prefix")),
    ],
)
def test_an_unfit_machine_gets_one_sentence(
    program: str, answer: str, words: tuple[str, ...], machine: Machine, tmp_path: Path
) -> None:
    machine.says(program, answer)
    _refused(machine.run(write_script(tmp_path, needs()), "--check"), *words)
    assert machine.files == []


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine than the target")
def test_a_bundle_for_another_machine_is_refused(machine: Machine, tmp_path: Path) -> None:
    script = write_script(tmp_path, replace(needs(), profile=load_profile("rpi4b")))
    _refused(machine.run(script, "--check"), "for aarch64", platform.machine())


def test_a_python_without_packages_is_named(machine: Machine, tmp_path: Path) -> None:
    script = write_script(tmp_path, replace(needs(), pythons=("3.8",)))
    for minor in range(9, 14):
        machine.says(f"python3.{minor}", "exit 1")
    done = machine.run(script, "--check")
    _refused(done, "for Python 3.8", f"has {HERE}", f"--python {HERE}")


def test_a_machine_without_python_is_told_what_to_install(machine: Machine, tmp_path: Path) -> None:
    for name in ("python3", *(f"python3.{minor}" for minor in range(9, 14))):
        machine.says(name, "exit 127")
    _refused(machine.run(write_script(tmp_path, needs()), "--check"), "apt install python3")


def test_the_memory_check_can_be_overruled(machine: Machine, tmp_path: Path) -> None:
    script = write_script(tmp_path, replace(needs(), memory_bytes=1 << 50))
    _refused(machine.run(script, "--check"), "--ignore-memory", "512 tokens")
    assert machine.run(script, "--check", "--ignore-memory").returncode == 0


def test_an_unknown_option_and_a_missing_folder_are_named(machine: Machine, tmp_path: Path) -> None:
    script = write_script(tmp_path, needs())
    _refused(machine.run(script, "--colour"), "--colour", "--help")
    _refused(machine.run(script, "--prefix"), "--prefix needs a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_prefix_is_named(machine: Machine, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    _refused(
        machine.run(write_script(tmp_path, needs()), "--check", "--prefix", f"{closed}/a"),
        "closed cannot be written (Permission denied)",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_read_only_disk_is_named(machine: Machine, tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.mkdir()
    mounted = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec sh "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, card, write_script(tmp_path, needs())]
    done = subprocess.run(
        [*command, "--check", "--prefix", card / "a"],
        env={"HOME": str(machine.home), "PATH": f"{machine.stubs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "install.sh" not in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    _refused(done, f"{card} cannot be written (Read-only file system)")
    assert list(card.iterdir()) == []


# ---- the installation ----------------------------------------------------------------------------


def _version(machine: Machine) -> str:
    program = machine.home / ".local/bin/awq-edge"
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()


def _releases(machine: Machine) -> list[str]:
    folder = machine.home / ".local/share/awq-edge/releases"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("shell", [name for name in SHELLS if name != "busybox"])
def test_it_installs_without_network(shell: str, machine: Machine, tmp_path: Path) -> None:
    script = stand_in_bundle(tmp_path / "a bundle")
    done = machine.run(script, shell=shell, http_proxy="http://127.0.0.1:9/")
    assert done.returncode == 0, done.stderr
    assert _version(machine) == "awq-edge 1.0"
    model = machine.home / ".local/share/awq-edge/models" / STORIES.name
    assert model.read_bytes() == STORIES.read_bytes()
    assert "current/bin/awq-edge run" in done.stderr


def test_a_prefix_may_be_relative(machine: Machine, tmp_path: Path) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    done = machine.run(script, "--prefix", "models here", folder=machine.home)
    assert done.returncode == 0, done.stderr
    assert _version(machine) == "awq-edge 1.0"
    assert (machine.home / "models here/models" / STORIES.name).is_file()


def test_a_later_release_replaces_the_earlier_one(machine: Machine, tmp_path: Path) -> None:
    assert machine.run(stand_in_bundle(tmp_path / "one")).returncode == 0
    assert machine.run(stand_in_bundle(tmp_path / "two", version="2.0")).returncode == 0
    assert _version(machine) == "awq-edge 2.0"
    assert len(_releases(machine)) == 1


def test_a_failed_selftest_leaves_everything_as_it_was(machine: Machine, tmp_path: Path) -> None:
    broken = stand_in_bundle(tmp_path / "broken", version="2.0", selftest=1)
    _refused(machine.run(broken), "self-test failed")
    assert _releases(machine) == []
    assert not (machine.home / ".local/share/awq-edge/models" / STORIES.name).exists()
    assert not (machine.home / ".local/bin").exists()

    assert machine.run(stand_in_bundle(tmp_path / "sound")).returncode == 0
    before = machine.files
    _refused(machine.run(broken), "self-test failed")
    assert machine.files == before
    assert _version(machine) == "awq-edge 1.0"
    # The user may still insist.
    assert machine.run(broken, "--no-selftest").returncode == 0
    assert _version(machine) == "awq-edge 2.0"


@pytest.mark.parametrize("options", [[], ["--no-selftest"]])
def test_a_program_that_does_not_start_is_not_installed(
    options: list[str], machine: Machine, tmp_path: Path
) -> None:
    broken = stand_in_bundle(tmp_path / "broken", starts=False)
    _refused(machine.run(broken, *options), "the installed program does not start")
    assert _releases(machine) == []


def test_a_damaged_file_is_named_before_anything_is_made(machine: Machine, tmp_path: Path) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    model = tmp_path / "bundle" / STORIES.name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    _refused(machine.run(script), STORIES.name, "damaged or missing")
    model.unlink()
    _refused(machine.run(script), STORIES.name, "damaged or missing")
    assert machine.files == []


def test_a_broken_package_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    (wheel,) = (tmp_path / "bundle/wheels").glob("awq_edge-*.whl")
    wheel.write_bytes(b"no zip")
    sums = tmp_path / "bundle/SHA256SUMS"
    digest = hashlib.sha256(b"no zip").hexdigest()
    lines = [
        digest + line[64:] if wheel.name in line else line for line in sums.read_text().split("\n")
    ]
    sums.write_text("\n".join(lines))
    _refused(machine.run(script), "packages cannot be installed")
    assert _releases(machine) == []


def _install(machine: Machine, script: Path, *arguments: str) -> None:
    done = machine.run(script, *arguments)
    assert done.returncode == 0, done.stderr


def _start(machine: Machine, verb: str = "--version") -> subprocess.CompletedProcess[str]:
    """The command as a shell finds it: an emptied script would end well there, and say nothing."""
    return subprocess.run(
        ["sh", "-c", f"awq-edge {verb}"],
        env={"PATH": f"{machine.home}/.local/bin:{os.defpath}", "HOME": str(machine.home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_same_bundle_installs_twice_and_the_model_is_a_file_of_its_own(
    machine: Machine, tmp_path: Path
) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    _install(machine, script)
    _install(machine, script)
    assert len(_releases(machine)) == 1
    prefix = machine.home / ".local/share/awq-edge"
    installed, bundled = prefix / "models" / STORIES.name, tmp_path / "bundle" / STORIES.name
    assert not installed.samefile(bundled)
    # Deploy's own copy goes away afterwards: a second name is enough there.
    _install(machine, script, "--link-model")
    assert installed.samefile(bundled)
    assert sorted(path.name for path in prefix.iterdir()) == [
        *("awq-edge", "current", "models", "releases")
    ]


def test_a_second_model_leaves_the_first_and_a_removed_one_stays_away(
    machine: Machine, tmp_path: Path
) -> None:
    _install(machine, stand_in_bundle(tmp_path / "one"))
    other = tmp_path / "other.gguf"
    shutil.copy(STORIES, other)
    script = stand_in_bundle(tmp_path / "two", model=other)
    _install(machine, script)
    models = machine.home / ".local/share/awq-edge/models"
    mine = models / "mine.gguf"
    mine.write_text("a file of the user's own")
    assert sorted(path.name for path in models.iterdir()) == [
        *("mine.gguf", "other.gguf", STORIES.name)
    ]
    (models / STORIES.name).unlink()
    _install(machine, script)
    assert sorted(path.name for path in models.iterdir()) == ["mine.gguf", "other.gguf"]
    assert not (models.parent / "current/models" / STORIES.name).exists()
    assert mine.read_text() == "a file of the user's own"


def test_a_damaged_installation_is_one_sentence_and_never_a_success(
    machine: Machine, tmp_path: Path
) -> None:
    """Every file of the release: emptied, cut, longer, gone; flipped bits of what runs too."""
    script = stand_in_bundle(tmp_path / "bundle")
    _install(machine, script)
    release = (machine.home / ".local/share/awq-edge/current").resolve()
    files = [path for path in release.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.parent.name != "models"]
    assert {"pyvenv.cfg", "files.txt", "awq_edge_stand_in.py", "RECORD"} <= {p.name for p in files}
    for path in files:
        good = path.read_bytes()
        flipped = bytes([good[0] ^ 1]) + good[1:] if good else b""
        for bad in (b"", good[: len(good) // 2], good + b"x", None, flipped):
            if bad == good or (bad == flipped and path.name not in ("files.txt", "pyvenv.cfg")):
                continue
            if bad is None:
                path.unlink()
            else:
                path.write_bytes(bad)
            done = _start(machine)
            path.write_bytes(good)
            if bad == flipped and path.name == "pyvenv.cfg" and done.returncode == 0:
                continue  # its first word is not one that Python needs
            assert done.returncode == 1, (path, bad, done.stdout)
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith("awq-edge: ")
            assert str(path.relative_to(release)) in line
    assert _start(machine).stdout == "awq-edge 1.0\n"
    # The same bytes elsewhere in the source: the sizes are right, and Python cannot read it.
    source = next(path for path in files if path.name == "awq_edge_stand_in.py")
    source.write_text(source.read_text().replace("def main", "def m(in"))
    done = _start(machine)
    assert done.returncode == 1
    assert "awq_edge_stand_in.py of the installation" in done.stderr
    assert "Traceback" not in done.stderr
    _install(machine, script)
    assert _start(machine).stdout == "awq-edge 1.0\n"


def test_a_flipped_bit_of_any_file_is_one_sentence_of_the_selftest(
    machine: Machine, tmp_path: Path
) -> None:
    """Also where Python itself would end at it: the contents are compared before it is loaded."""
    _install(machine, stand_in_bundle(tmp_path / "bundle"))
    release = (machine.home / ".local/share/awq-edge/current").resolve()
    files = [path for path in release.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {".gguf", ".py", ".txt", ".cfg"} <= {path.suffix for path in files}
    for path in files:
        good = path.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1} if good else ():
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            path.write_bytes(bad)
            done = _start(machine, "selftest")
            path.write_bytes(good)
            if path.name == "pyvenv.cfg" and "is damaged" not in done.stderr:
                assert done.returncode != 0  # Python does not find its own modules
                continue
            assert done.returncode == 1, (path, place, done.stdout)
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert str(path.relative_to(release)) in line
    assert _start(machine, "selftest").returncode == 0


def test_a_python_that_is_gone_is_one_sentence(machine: Machine, tmp_path: Path) -> None:
    _install(machine, stand_in_bundle(tmp_path / "bundle"))
    python = machine.home / ".local/share/awq-edge/current/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    done = _start(machine)
    assert (done.returncode, done.stdout) == (1, "")
    assert "install it again" in done.stderr


def test_a_run_that_is_killed_leaves_the_old_release_and_the_next_one_cleans_up(
    machine: Machine, tmp_path: Path
) -> None:
    """At moments that are spread over the whole run, seen by what it has made."""
    _install(machine, stand_in_bundle(tmp_path / "one"))
    two = stand_in_bundle(tmp_path / "two", version="2.0")
    prefix = machine.home / ".local/share/awq-edge"
    (old,) = _releases(machine)
    seen = set()
    # A new release, its packages, its list, and what stands in "current" then.
    for sight in ("*", "*/lib/*/*/*.py", "*/lib/*/*/__pycache__/*", "*/files.txt", ""):
        before = _seen_in(prefix / "releases", sight or "*")
        process = machine.begin(two)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if sight and _seen_in(prefix / "releases", sight) - before:
                break
            if not sight and str((prefix / "current").readlink()) != f"releases/{old}":
                break
        process.kill()
        process.wait()
        seen.add(_version(machine))
    assert "awq-edge 1.0" in seen
    assert seen <= {"awq-edge 1.0", "awq-edge 2.0"}
    _install(machine, two)
    assert _version(machine) == "awq-edge 2.0"
    assert len(_releases(machine)) == 1
    assert sorted(path.name for path in prefix.iterdir()) == [
        *("awq-edge", "current", "models", "releases")
    ]


def _seen_in(folder: Path, pattern: str) -> set[Path]:
    """What is there at a moment; a folder may go while it is looked through."""
    with contextlib.suppress(FileNotFoundError):
        return set(folder.glob(pattern))
    return set()


def test_of_two_installations_at_once_one_waits(machine: Machine, tmp_path: Path) -> None:
    one, two = stand_in_bundle(tmp_path / "one"), stand_in_bundle(tmp_path / "two", version="2.0")
    running = [machine.begin(script) for script in (one, two, one)]
    for process in running:
        assert process.wait(timeout=120) == 0
    assert len(_releases(machine)) == 1
    assert _version(machine) in ("awq-edge 1.0", "awq-edge 2.0")


@pytest.mark.parametrize("way", ["current/bin/python", "current/bin/awq-edge"])
def test_a_release_in_use_stays_until_nobody_uses_it(
    way: str, machine: Machine, tmp_path: Path
) -> None:
    _install(machine, stand_in_bundle(tmp_path / "one"))
    (old,) = _releases(machine)
    wait = "import sys; print('waits', flush=True); sys.stdin.read()"
    arguments = ["-c", wait] if way.endswith("python") else ["wait"]
    program = os.path.relpath(machine.home / ".local/share/awq-edge" / way, tmp_path)
    user = subprocess.Popen(
        [program, *arguments], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert user.stdout is not None and user.stdout.readline() == b"waits\n"
        two = stand_in_bundle(tmp_path / "two", version="2.0")
        _install(machine, two)
        assert old in _releases(machine)
        assert _version(machine) == "awq-edge 2.0"
    finally:
        user.kill()
        user.communicate()
    _install(machine, two)
    assert len(_releases(machine)) == 1


def test_a_list_of_checksums_is_believed_only_when_it_is_whole(
    machine: Machine, tmp_path: Path
) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    sums = tmp_path / "bundle/SHA256SUMS"
    good = sums.read_text()
    lines = good.splitlines(keepends=True)
    (wheel,) = (line for line in lines if "awq_edge-" in line)
    bad_lists = {
        "": "empty",
        good[:-1]: "cut off",
        good.replace(f"  {STORIES.name}", f" {STORIES.name}"): "damaged",
        good + "\n": "damaged",
        good + lines[0]: "damaged",  # twice
        good.upper(): "damaged",
        good + f"{'0' * 64}  ../outside\n": "damaged",
        good + f"{'0' * 64}  /etc/passwd\n": "damaged",
        good + f"{'0' * 64}  no such file\n": "no such file is damaged or missing",
        good.replace(wheel, ""): "is not listed in SHA256SUMS",
        "".join(line for line in lines if f"{HERE}.txt" not in line): "is not listed",
        "".join(line for line in lines if STORIES.name not in line): "is not listed",
    }
    for text, words in bad_lists.items():
        sums.write_text(text)
        if text == "":
            _refused(machine.run(script))
        else:
            _refused(machine.run(script), words)
    sums.write_text(good)
    for program in ("sha256sum", "shasum", "openssl"):  # what they say is not asked for
        machine.says(program, "echo everything: OK; exit 0")
    assert machine.run(script).returncode == 0


@pytest.mark.parametrize("prefix", ["/proc/x", "/proc/self/fd", "/sys/x", "/dev/null/x", "/dev/x"])
def test_a_place_that_keeps_nothing_is_refused(
    prefix: str, machine: Machine, tmp_path: Path
) -> None:
    _refused(
        machine.run(stand_in_bundle(tmp_path / "b"), "--prefix", prefix), "another place", prefix
    )


def test_a_place_below_a_file_or_with_a_line_break_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    script = write_script(tmp_path, needs())
    (tmp_path / "file").write_text("")
    _refused(machine.run(script, "--check", "--prefix", f"{tmp_path}/file/a/b"), "is no folder")
    for name in ("a\nb", "a\n", "a\x1b[2J", "a\tb"):
        done = machine.run(script, "--check", "--prefix", f"{tmp_path}/{name}")
        _refused(done, "control characters")
    _refused(machine.run(script, "--check", "--prefix", f"{tmp_path}/../a"), "without them")


def test_without_a_home_a_prefix_is_enough(machine: Machine, tmp_path: Path) -> None:
    script = stand_in_bundle(tmp_path / "bundle")
    _refused(machine.run(script, HOME=""), "HOME", "--prefix")
    done = machine.run(script, "--prefix", str(tmp_path / "place"), HOME="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "place/current/bin/awq-edge").exists()


def test_names_in_a_package_stay_inside(machine: Machine, tmp_path: Path) -> None:
    for name in ("../../outside.py", "/tmp/outside.py", "a/./b.py", "a\\b.py", "a\n.py"):
        folder = tmp_path / f"bundle {name.encode().hex()}"
        script = stand_in_bundle(folder)
        (wheel,) = (folder / "wheels").glob("awq_edge-*.whl")
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr(name, "")
        write_sums(folder)
        _refused(machine.run(script), "packages cannot be installed", "holds the name")
    assert _releases(machine) == []


def test_a_program_of_the_users_own_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    own = machine.home / ".local/bin/awq-edge"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert machine.run(stand_in_bundle(tmp_path / "bundle")).returncode == 0
    assert own.read_text() == "mine"


def test_it_passes_the_shells_own_syntax_check(tmp_path: Path) -> None:
    script = write_script(tmp_path, needs())
    for shell in SHELLS:
        if shell != "busybox":
            subprocess.run([shell, "-n", str(script)], check=True)
    assert f"VERSION={__version__}\n" in script.read_text()
    assert "#VALUES#" not in script.read_text()
