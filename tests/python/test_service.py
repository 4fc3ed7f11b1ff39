"""The service: its unit, and install.sh with a systemd that only writes down what it is told."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from boards import STORIES
from stand_in import stand_in_bundle
from test_install_script import Machine, _refused

from awq_edge.cli._targets import service_plan
from awq_edge.device.bundle import ServicePlan, requirements
from awq_edge.device.project import runtime_requirements
from awq_edge.device.service import Service
from awq_edge.errors import InvalidArgumentError
from awq_edge.profiles import load_profile

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="systemd is for Linux, and this is another system"
)
USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One whose systemd answers, and writes down what it was asked."""
    made = Machine(tmp_path)
    log = tmp_path / "log"
    for program, answer in {
        "systemctl": 'case "$*" in *is-active*) echo active;; esac',
        "loginctl": "echo yes",
        "systemd-run": "exit 0",
        "sudo": 'shift; "$@"',
    }.items():
        made.says(program, f'echo "{program} $*" >>{log}\n{answer}')
    return made


def log_of(machine: Machine) -> list[str]:
    return (machine.home.parent / "log").read_text().splitlines()


def unit_of(machine: Machine) -> str:
    return (machine.home / ".config/systemd/user/awq-edge.service").read_text()


def values(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line[1:])


# ---- the unit ------------------------------------------------------------------------------------


def test_a_unit_is_hardened() -> None:
    unit = values(Service("/home/pi/a", "m.awq.gguf", "system", "2000000000").text(own_view=True))
    for name, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "read-only",
        "Restart": "on-failure",
        "CapabilityBoundingSet": "",
        "User": USER,
        "MemoryMax": "2000000000",
        "WantedBy": "multi-user.target",
        "EnvironmentFile": "-/home/pi/a/serve.conf",
    }.items():
        assert unit[name] == value, name
    assert unit["ExecStart"] == (
        '"/home/pi/a/awq-edge" serve "/home/pi/a/models/m.awq.gguf" $AWQ_EDGE_SERVE'
    )


def test_a_user_s_unit_asks_for_what_users_get() -> None:
    unit = values(Service("/home/pi/a", "m.gguf", "user", "").text(own_view=False))
    assert unit["WantedBy"] == "default.target" and unit["NoNewPrivileges"] == "yes"
    for name in ("User", "MemoryMax", "ProtectSystem", "CapabilityBoundingSet"):
        assert name not in unit


def test_names_mean_nothing_to_systemd() -> None:
    unit = Service('/home/a b/%h "$x', "50% $HOME\\.gguf", "user", "").text(own_view=False)
    start = values(unit)["ExecStart"]
    assert start.startswith('"/home/a b/%%h \\"$$x/awq-edge" serve ')
    assert start.endswith('/models/50%% $$HOME\\\\.gguf" $AWQ_EDGE_SERVE')
    assert values(unit)["Description"] == "awq-edge: 50%% $HOME\\.gguf"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("kind", ["user", "system"])
def test_systemd_reads_the_unit_without_a_word(kind: str, tmp_path: Path) -> None:
    prefix = tmp_path / "with blank"
    prefix.mkdir()
    program = prefix / "awq-edge"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "awq-edge.service"
    path.write_text(Service(str(prefix), "m.gguf", kind, "2000000000").text(own_view=True))
    done = subprocess.run(
        ["systemd-analyze", *(["--user"] if kind == "user" else []), "verify", path],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"},
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "awq-edge.service" in line]
    assert said == [], done.stderr


# ---- the installation ----------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Path:
    plan = ServicePlan("user", 3_000_000_000)
    return stand_in_bundle(tmp_path / "bundle", service=plan)


def test_the_service_is_installed_started_and_answers(machine: Machine, script: Path) -> None:
    done = machine.run(script)
    assert done.returncode == 0, done.stderr
    assert "The service answers at http://127.0.0.1:8080" in done.stderr
    prefix = f"{machine.home}/.local/share/awq-edge"
    unit = values(unit_of(machine))
    model = f"{prefix}/models/{STORIES.name}"
    assert unit["ExecStart"] == f'"{prefix}/awq-edge" serve "{model}" $AWQ_EDGE_SERVE'
    assert unit["MemoryMax"] == "3000000000" and unit["ProtectSystem"] == "strict"
    assert Path(model).exists() and os.access(f"{prefix}/awq-edge", os.X_OK)
    log = log_of(machine)
    asked = [line for line in log if line.startswith("systemctl --user ")]
    assert asked[1:4] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable awq-edge.service",
        "systemctl --user restart awq-edge.service",
    ]
    assert f"loginctl enable-linger {USER}" in log
    assert "AWQ_EDGE_SERVE=" in Path(prefix, "serve.conf").read_text().splitlines()


def test_the_next_installation_keeps_options_and_starts_the_new_release(
    machine: Machine, script: Path
) -> None:
    assert machine.run(script).returncode == 0
    conf = machine.home / ".local/share/awq-edge/serve.conf"
    conf.write_text("AWQ_EDGE_SERVE=--host 0.0.0.0\n")
    folder = script.parent.parent / "second"
    again = stand_in_bundle(folder, version="2.0", service=ServicePlan("user"))
    assert machine.run(again).returncode == 0
    assert conf.read_text() == "AWQ_EDGE_SERVE=--host 0.0.0.0\n"
    assert "MemoryMax" not in values(unit_of(machine))
    assert log_of(machine).count("systemctl --user restart awq-edge.service") == 2
    assert len(list((conf.parent / "releases").iterdir())) == 1


def test_a_release_that_cannot_serve_does_not_replace_one_that_does(
    machine: Machine, script: Path, tmp_path: Path
) -> None:
    assert machine.run(script).returncode == 0
    plain = stand_in_bundle(tmp_path / "plain", version="2.0")
    _refused(machine.run(plain), "without --service", "awq-edge.service")
    (machine.home / ".local/share/awq-edge/awq-edge.service").unlink()
    assert machine.run(plain).returncode == 0


def test_a_service_of_the_system_takes_the_place_of_the_user_s(
    machine: Machine, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.run(script).returncode == 0
    machine.says("install", f'shift 2; cp "$1" {tmp_path}/installed')  # instead of into /etc
    system = stand_in_bundle(tmp_path / "system", service=ServicePlan("system"))
    done = machine.run(system)
    assert done.returncode == 0, done.stderr
    log = log_of(machine)
    assert "systemctl --user disable --now awq-edge.service" in log
    assert "systemctl enable awq-edge.service" in log
    unit = values((tmp_path / "installed").read_text())
    assert unit["User"] == USER and unit["WantedBy"] == "multi-user.target"


def test_without_systemd_nothing_is_touched(machine: Machine, script: Path) -> None:
    machine.says("systemctl", "echo 'Failed to connect to bus' >&2; exit 1")
    _refused(machine.run(script), "no systemd for this user", "--service")
    assert machine.files == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no sudo")
def test_a_service_of_the_system_needs_sudo(machine: Machine, tmp_path: Path) -> None:
    machine.says("sudo", "echo 'a password is required' >&2; exit 1")
    system = stand_in_bundle(tmp_path / "system", service=ServicePlan("system"))
    _refused(machine.run(system), "sudo", "--service user")
    assert machine.files == []


def test_a_service_that_does_not_start_is_told(machine: Machine, script: Path) -> None:
    machine.says("systemctl", 'case "$*" in *is-active*) echo failed; exit 3;; esac')
    _refused(machine.run(script), "is installed, and its service is not", "journalctl --user")
    machine.says("systemctl", 'case "$*" in *enable*) echo "Access denied" >&2; exit 4;; esac')
    _refused(machine.run(script), "systemctl enable failed: Access denied")


def test_another_unit_of_that_name_stays(machine: Machine, script: Path) -> None:
    other = machine.home / ".config/systemd/user/awq-edge.service"
    other.parent.mkdir(parents=True)
    other.write_text("[Service]\nExecStart=/usr/bin/other\n")
    _refused(machine.run(script), "is not the service of")
    assert other.read_text() == "[Service]\nExecStart=/usr/bin/other\n"


def test_a_user_whose_services_do_not_linger_is_told(machine: Machine, script: Path) -> None:
    machine.says("loginctl", "echo no")
    machine.says("systemd-run", "exit 226")
    done = machine.run(script)
    assert done.returncode == 0 and f"sudo loginctl enable-linger {USER}" in done.stderr
    assert "ProtectSystem" not in values(unit_of(machine))


# ---- the bundle ----------------------------------------------------------------------------------


def test_a_board_that_serves_gets_the_packages_for_it() -> None:
    names = {text.split(">")[0] for text in runtime_requirements(("serve",))}
    assert {"starlette", "uvicorn", "numpy"} <= names
    assert not {"torch", "pytest"} & names
    assert not any("starlette" in text for text in runtime_requirements())
    assert not any("extra" in text for text in runtime_requirements(("serve",)))


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(InvalidArgumentError, match="user, system"):
        service_plan("root", None)
    with pytest.raises(InvalidArgumentError, match="needs --service"):
        service_plan(None, "2GB")
    assert service_plan(None, None) is None
    assert service_plan("user", "2GB") == ServicePlan("user", 2_000_000_000)
    with pytest.raises(InvalidArgumentError, match="--memory-max"):
        requirements(STORIES, load_profile("rpi4b"), ["3.11"], service=ServicePlan("user", 1000))
