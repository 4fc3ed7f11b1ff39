"""Faults of the medium, the network and the system on a virtual board: a sentence, and it goes on.

Each case ends with the installation that runs, or with the refusal that says why there is none.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import cuts
from bench import (
    EDGE,
    MODEL,
    PREFIX,
    PROMPT,
    Bench,
    deploy,
    deployed,
    must_deploy,
    must_refuse,
    must_run,
)
from machine import BoardFailure

RUN = f"{EDGE} run {PREFIX}/models/{MODEL} -p '{PROMPT}' -n 4 --temperature 0 -q"


def few_megabytes(bench: Bench) -> str:
    """A board with 128 MB is refused before anything is sent."""
    with bench.board(options=("-m", "128M")) as machine:
        must_refuse(deploy(bench, machine), "memory", "are free")
    return ""


def full_disk(bench: Bench) -> str:
    """No room at the check, and none that is left after it: one sentence, and the old one runs."""
    with bench.board(deployed(bench)) as machine:
        free = int(machine.must("df -k --output=avail / | tail -n 1"))
        machine.must(f"sudo fallocate -l {free - 60_000}k /fill")
        must_refuse(deploy(bench, machine), "disk", "are free")
        machine.must("sudo rm /fill && sync")

        def fill(line: str) -> None:
            if "disk free" in line:
                machine.must(f"sudo fallocate -l {free - 40_000}k /fill")

        must_refuse(deploy(bench, machine, seen=fill), "disk", "full")
        must_run(bench, machine)
        machine.must("sudo rm /fill && sync")
        must_deploy(bench, machine)
        must_run(bench, machine)
    return ""


def without_sudo_and_venv(bench: Bench) -> str:
    """Neither python3-venv nor sudo is needed; a second user's installation stands beside it."""
    with bench.board() as machine:
        machine.must("sudo rm -rf /usr/lib/python3*/venv /usr/lib/python3*/ensurepip")
        machine.must(
            "sudo sh -c 'echo other:x:1001:1001::/home/other:/bin/bash >>/etc/passwd;"
            ' echo "other:*:19700:0:99999:7:::" >>/etc/shadow; echo other:x:1001: >>/etc/group;'
            " cp -a /home/pi /home/other; chown -R 1001:1001 /home/other'"
        )
        machine.must("sudo rm /etc/sudoers.d/pi")
        must_deploy(bench, machine)
        must_run(bench, machine)
        other = replace(machine, user="other")
        refused = deploy(bench, other, "--prefix", "/home/pi/.local/share/awq-edge")
        must_refuse(refused, "/home/pi")
        must_deploy(bench, other)
        must_run(bench, other)
        must_run(bench, machine)
    return ""


def read_only_root(bench: Bench) -> str:
    """A disk that became read-only: deploy says so, and what is installed runs."""
    with bench.board(deployed(bench)) as machine:
        machine.must("sudo systemctl stop systemd-journald.socket systemd-journald; sync")
        machine.must("sudo mount -o remount,ro / || sudo sh -c 'echo u >/proc/sysrq-trigger'")
        must_refuse(deploy(bench, machine), "cannot be written (Read-only file system)")
        machine.must(RUN)
        machine.must("sudo mount -o remount,rw /")
        must_deploy(bench, machine)
    return ""


def unreadable_model(bench: Bench) -> str:
    """A block of the model that the medium does not give: sentences, no signal, and a new copy."""
    image = deployed(bench)
    path = f"{cuts.HOME}/releases/{cuts.release_in(image)}/models/{MODEL}"
    block_bytes = int(cuts.debugfs(image, "stats -h").split("Block size:")[1].split()[0])
    blocks = cuts.debugfs(image, f"blocks {path}").split()
    sector = int(blocks[len(blocks) // 2]) * block_bytes // 512
    disk = (
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image},"
        "file.inject-error.0.event=read_aio,file.inject-error.0.errno=5,"
        f"file.inject-error.0.sector={sector}"
    )
    with bench.board(image, disk=disk) as machine:
        for command, words in ((RUN, "cannot be read any more"), (f"{EDGE} selftest", "damaged")):
            done = machine.run(command)
            said = done.stderr.splitlines()
            if done.returncode != 1 or len(said) != 1 or words not in said[0]:
                raise BoardFailure(f"{command} ended with {done.returncode}: {done.stderr[-300:]}")
        must_deploy(bench, machine)
        must_run(bench, machine)
    return ""


def slow_card(bench: Bench) -> str:
    """An update from and to a card of 4 MB and 100 requests a second."""
    slow = "file={image},format=raw,throttling.bps-total=4000000,throttling.iops-total=100"
    with bench.board(deployed(bench), disk=slow) as machine:
        result = must_deploy(bench, machine)
        must_run(bench, machine)
    return f"deploy {result.lines[-1][0]:.0f} s"


def connection_lost(bench: Bench) -> str:
    """The connection ends in the middle of the copy: one sentence, and the same command goes on."""
    with bench.board() as machine:
        lost = threading.Event()

        def lose(line: str) -> None:
            if line.startswith("Copying") and not lost.is_set():
                lost.set()
                machine.run("sudo sh -c 'kill -9 $(pgrep -u pi sshd)'")

        refused = deploy(bench, machine, seen=lose)
        if not lost.is_set():
            raise BoardFailure("the copy was over before it could be interrupted")
        must_refuse(refused, "broke", "run the same command again")
        result = must_deploy(bench, machine)
        if "already there" not in result.text:
            raise BoardFailure("what had arrived was sent again")
        must_run(bench, machine)
    return ""


def killed_for_memory(bench: Bench) -> str:
    """The kernel kills the installation for memory: a sentence, and the old release runs."""
    with bench.board(deployed(bench)) as machine:
        release = machine.must(f"readlink {PREFIX}/current")
        limit = "sudo systemctl set-property --runtime user-1000.slice"

        def squeeze(line: str) -> None:
            if line.startswith("Installing awq-edge"):
                machine.must(f"{limit} MemoryMax=24M MemorySwapMax=0")

        refused = deploy(bench, machine, seen=squeeze)
        machine.run(f"{limit} MemoryMax=infinity")
        must_refuse(refused, "127.0.0.1")
        if machine.must(f"readlink {PREFIX}/current") != release:
            raise BoardFailure("another release is in use")
        must_run(bench, machine)
        must_deploy(bench, machine)
        must_run(bench, machine)
    return _said(refused.text)


def little_memory_with_swap(bench: Bench) -> str:
    """512 MB and a file to swap to: deploy, and a generation."""
    with bench.board(options=("-m", "512M")) as machine:
        machine.must("sudo fallocate -l 200M /swap && sudo chmod 600 /swap")
        machine.must("sudo mkswap -q /swap && sudo swapon /swap")
        must_deploy(bench, machine)
        must_run(bench, machine)
        return machine.must("swapon --show=NAME,SIZE,USED --noheadings").strip()


def _said(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("awq-edge: "))[:100]
