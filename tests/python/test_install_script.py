"""install.sh: every check ends in one sentence, and nothing is half-installed.

The machine is made up by programs that stand before the real ones on the PATH. The bundle is made
up too, but its virtual environment, pip and files are real. A real bundle on an emulated board is
in test_emulated_board.py.
"""

from __future__ import annotations

import ensurepip
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from boards import STORIES

from awq_edge import __version__
from awq_edge.device.bundle import Requirements, requirements
from awq_edge.profiles import load_profile

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="install.sh is for Linux, and this is another system"
)
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)] or ["sh"]


def _needs() -> Requirements:
    machine = "x86_64-linux" if platform.machine() == "x86_64" else "aarch64-generic"
    return requirements(STORIES, load_profile(machine), [HERE], packages_bytes=1_000_000)


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

    @property
    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _script(folder: Path, needs: Requirements) -> Path:
    path = folder / "install.sh"
    path.write_text(needs.script())
    return path


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
    done = machine.run(_script(tmp_path, _needs()), "--check", shell=shell)
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
    _refused(machine.run(_script(tmp_path, _needs()), "--check"), *words)
    assert machine.files == []


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine than the target")
def test_a_bundle_for_another_machine_is_refused(machine: Machine, tmp_path: Path) -> None:
    needs = replace(_needs(), profile=load_profile("rpi4b"))
    _refused(machine.run(_script(tmp_path, needs), "--check"), "for aarch64", platform.machine())


def test_a_python_without_packages_is_named(machine: Machine, tmp_path: Path) -> None:
    needs = replace(_needs(), pythons=("3.8",))
    for minor in range(9, 14):
        machine.says(f"python3.{minor}", "exit 1")
    done = machine.run(_script(tmp_path, needs), "--check")
    _refused(done, "for Python 3.8", f"has {HERE}", f"--python {HERE}")


def test_a_machine_without_python_is_told_what_to_install(machine: Machine, tmp_path: Path) -> None:
    for name in ("python3", *(f"python3.{minor}" for minor in range(9, 14))):
        machine.says(name, "exit 127")
    _refused(machine.run(_script(tmp_path, _needs()), "--check"), "apt install python3")


def test_the_memory_check_can_be_overruled(machine: Machine, tmp_path: Path) -> None:
    script = _script(tmp_path, replace(_needs(), memory_bytes=1 << 50))
    _refused(machine.run(script, "--check"), "--ignore-memory", "512 tokens")
    assert machine.run(script, "--check", "--ignore-memory").returncode == 0


def test_an_unknown_option_and_a_missing_folder_are_named(machine: Machine, tmp_path: Path) -> None:
    script = _script(tmp_path, _needs())
    _refused(machine.run(script, "--colour"), "--colour", "--help")
    _refused(machine.run(script, "--prefix"), "--prefix needs a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_prefix_is_named(machine: Machine, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    _refused(
        machine.run(_script(tmp_path, _needs()), "--check", "--prefix", f"{closed}/a"), "closed"
    )


# ---- the installation ----------------------------------------------------------------------------


def _wheel(folder: Path, version: str, selftest: int) -> Path:
    """A package that stands for awq-edge: it prints its version, and its self-test may fail."""
    path = folder / f"awq_edge-{version}-py3-none-any.whl"
    info = f"awq_edge-{version}.dist-info"
    body = (
        "import sys\n"
        "def main():\n"
        f"    if sys.argv[1:2] == ['selftest']: sys.exit({selftest})\n"
        f"    print('awq-edge {version}')\n"
    )
    files = {
        "awq_edge_stand_in.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: awq-edge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nawq-edge = awq_edge_stand_in:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files))
    return path


def _bundle(folder: Path, *, version: str = "1.0", selftest: int = 0) -> Path:
    """A bundle with real pip, a stand-in for the package, and the small model."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    pip = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
    if pip is None:
        pytest.skip("this Python's ensurepip carries no pip")
    shutil.copy(pip, wheels)
    own = _wheel(wheels, version, selftest)
    (wheels / f"{HERE}.txt").write_text(f"{own.name}\n{pip.name}\n")
    shutil.copy(STORIES, folder)
    _script(folder, _needs())
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    sums = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder / "install.sh"


def _version(machine: Machine) -> str:
    program = machine.home / ".local/bin/awq-edge"
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()


def _releases(machine: Machine) -> list[str]:
    folder = machine.home / ".local/share/awq-edge/releases"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("shell", [name for name in SHELLS if name != "busybox"])
def test_it_installs_without_network(shell: str, machine: Machine, tmp_path: Path) -> None:
    script = _bundle(tmp_path / "a bundle")
    done = machine.run(script, shell=shell, PIP_INDEX_URL="http://127.0.0.1:9/", http_proxy="x")
    assert done.returncode == 0, done.stderr
    assert _version(machine) == "awq-edge 1.0"
    model = machine.home / ".local/share/awq-edge/models" / STORIES.name
    assert model.read_bytes() == STORIES.read_bytes()
    assert "current/bin/awq-edge run" in done.stderr


def test_a_prefix_may_be_relative(machine: Machine, tmp_path: Path) -> None:
    script = _bundle(tmp_path / "bundle")
    done = machine.run(script, "--prefix", "models here", folder=machine.home)
    assert done.returncode == 0, done.stderr
    assert _version(machine) == "awq-edge 1.0"
    assert (machine.home / "models here/models" / STORIES.name).is_file()


def test_a_later_release_replaces_the_earlier_one(machine: Machine, tmp_path: Path) -> None:
    assert machine.run(_bundle(tmp_path / "one")).returncode == 0
    assert machine.run(_bundle(tmp_path / "two", version="2.0")).returncode == 0
    assert _version(machine) == "awq-edge 2.0"
    assert len(_releases(machine)) == 1


def test_a_failed_selftest_leaves_everything_as_it_was(machine: Machine, tmp_path: Path) -> None:
    broken = _bundle(tmp_path / "broken", version="2.0", selftest=1)
    _refused(machine.run(broken), "self-test failed")
    assert _releases(machine) == []
    assert not (machine.home / ".local/share/awq-edge/models" / STORIES.name).exists()
    assert not (machine.home / ".local/bin").exists()

    assert machine.run(_bundle(tmp_path / "sound")).returncode == 0
    before = machine.files
    _refused(machine.run(broken), "self-test failed")
    assert machine.files == before
    assert _version(machine) == "awq-edge 1.0"
    # The user may still insist.
    assert machine.run(broken, "--no-selftest").returncode == 0
    assert _version(machine) == "awq-edge 2.0"


def test_a_damaged_file_is_named_before_anything_is_made(machine: Machine, tmp_path: Path) -> None:
    script = _bundle(tmp_path / "bundle")
    model = tmp_path / "bundle" / STORIES.name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    _refused(machine.run(script), STORIES.name, "damaged or missing")
    model.unlink()
    _refused(machine.run(script), STORIES.name, "damaged or missing")
    assert machine.files == []


def test_a_broken_package_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    script = _bundle(tmp_path / "bundle")
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


def test_a_program_of_the_users_own_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    own = machine.home / ".local/bin/awq-edge"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert machine.run(_bundle(tmp_path / "bundle")).returncode == 0
    assert own.read_text() == "mine"


def test_it_passes_the_shells_own_syntax_check(tmp_path: Path) -> None:
    script = _script(tmp_path, _needs())
    for shell in SHELLS:
        if shell != "busybox":
            subprocess.run([shell, "-n", str(script)], check=True)
    assert f"VERSION={__version__}\n" in script.read_text()
    assert "#VALUES#" not in script.read_text()
