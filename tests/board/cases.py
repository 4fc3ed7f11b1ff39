"""deploy on whole virtual boards: boots, power cuts, full disks, other kernels: ``make board``.

    python tests/board/cases.py [--quick] [--cuts N] [--boots N] [--seed S] [CASE...]

Builds images once (images.py), runs each case on a copy, and prints a table with times. A cut is
placed by what was seen: between two lines that the command printed, after a random one of the
writes that the disk got in that time (cuts.py). Works in ``build/board`` alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cuts
import faults
import images
import service
from bench import (
    AWQ_EDGE,
    EDGE,
    PREFIX,
    STORIES,
    Bench,
    chat_model,
    deploy,
    deployed,
    must_compute,
    must_deploy,
    must_refuse,
    must_run,
)
from images import ROOT, WORK, Unavailable
from machine import BoardFailure, Kind, Machine, missing_tools


def fresh_and_cut(bench: Bench) -> str:
    """A fresh deploy, the plug pulled at its end, a boot, a restart: text, logits, every file."""
    with bench.board() as machine:
        result = must_deploy(bench, machine)
        machine.cut()
        machine.start()
        must_run(bench, machine)
        machine.reboot()
        must_run(bench, machine)
        machine.off()
        shutil.copyfile(machine.image, bench.deployed)
    seconds = {line.split(" ")[0]: at for at, line in result.lines}
    spent = seconds.get("Self-test:", result.lines[-1][0]) - seconds.get("Installing", 0)
    return f"deploy {result.lines[-1][0]:.0f} s, of it unpacking {spent:.0f} s"


def again(bench: Bench) -> str:
    """The same deploy again: what is there is not sent, and one release stays."""
    with bench.board(deployed(bench)) as machine:
        result = must_deploy(bench, machine)
        if "are already there" not in result.text:
            raise BoardFailure("what was there was sent again")
        must_run(bench, machine)
        if len(machine.must(f"ls {PREFIX}/releases").split()) != 1:
            raise BoardFailure("the old release is still there")
    return f"deploy {result.lines[-1][0]:.0f} s"


def second_model(bench: Bench) -> str:
    """Another model: both stay, and both run."""
    other = WORK / "other.awq.gguf"
    shutil.copyfile(STORIES, other)
    with bench.board(deployed(bench)) as machine:
        must_deploy(bench, machine, model=other)
        must_run(bench, machine)
        must_run(bench, machine, other)
    return ""


def cuts_of_a_fresh_one(bench: Bench) -> str:
    """Cuts at random moments of a fresh deploy; after those that are booted the same ends well."""
    return look_at_cuts(bench, "fresh", bench.base)


def cuts_of_an_update(bench: Bench) -> str:
    """Cuts at random moments of an update; after each the old release or the new one is whole."""
    return look_at_cuts(bench, "update", deployed(bench))


def look_at_cuts(bench: Bench, name: str, image: Path) -> str:
    """One deploy with all its writes, then ``bench.cuts`` moments of it.

    Args:
        bench: Numbers and seed.
        name: Of what is kept of the deploy; a later run goes on with it.
        image: What the board starts from.
    """
    kept = WORK / f"{name}-{bench.deployed.stem.removeprefix('deployed-')}"
    log, seen = kept.with_suffix(".writes"), kept.with_suffix(".lines")
    if not seen.exists():
        with bench.board(image, disk=cuts.LOGGED) as machine:
            result = must_deploy(bench, machine)
            time.sleep(5)  # a cut may also come a little later
            writes = Path(f"{machine.image}.writes")
            lines = [[line, size] for (_, line), size in zip(result.lines, result.written)]
            lines.append(["", writes.stat().st_size])
            machine.off()
            writes.replace(log)
            if not bench.deployed.exists():
                shutil.copyfile(machine.image, bench.deployed)
        seen.write_text(json.dumps(lines))
    lines = json.loads(seen.read_text())
    # Not before something is written.
    first = next(at for at, (line, _) in enumerate(lines) if "disk free" in line)
    wanted = cuts.moments(log, lines[first:], bench.cuts, random.Random(f"{bench.seed} {name}"))

    old = cuts.release_in(image)

    def boot(copy: Path) -> None:
        with bench.board(copy) as machine:
            installed = machine.run(f"test -e {PREFIX}/current").returncode == 0
            if old and not installed:
                raise BoardFailure("no release is left")
            if installed:
                must_run(bench, machine)
            must_deploy(bench, machine)
            must_run(bench, machine)
            if len(machine.must(f"ls {PREFIX}/releases").split()) != 1:
                raise BoardFailure("a release is left over")

    table = kept.with_suffix(f".{bench.seed}.cuts")
    look = cuts.Look(image, log, table, old, boot, bench.boots)
    return look.at_all(wanted)


def damaged(bench: Bench) -> str:
    """Files of each kind emptied, cut, flipped: one sentence and status 1; deploy mends it."""
    kinds = ("*.py", "*.pyc", "*.so", "METADATA", "*.gguf", "files.txt", "pyvenv.cfg")
    chance = random.Random(bench.seed)
    ways = {"emptied": ": >FILE", "cut": "truncate -s -1 FILE"}
    with bench.board(deployed(bench)) as machine:
        machine.must(f"cp -a {PREFIX} whole")
        for pattern in kinds:
            paths = machine.must(
                f"cd {PREFIX}/current/ && find . -type f -size +0 -name {shlex.quote(pattern)}"
            ).split()
            path = f"{PREFIX}/current/{chance.choice(sorted(paths))}"
            flip = "printf '\\377' | dd of=FILE bs=1 seek=9 conv=notrunc 2>&1"
            for way, script in {**ways, "flipped": flip}.items():
                machine.must(script.replace("FILE", path))
                verb = "selftest" if way == "flipped" or pattern == "*.gguf" else "--version"
                done = machine.run(f"{EDGE} {verb}")
                lines = done.stderr.strip().splitlines()
                if done.returncode != 1 or len(lines) != 1 or "install it again" not in lines[0]:
                    raise BoardFailure(f"{path} {way}: {done.returncode}, {done.stderr!r}")
                machine.must(f"cp -a whole/{path[len(PREFIX) + 1 :]} {path}")
        machine.must(
            f"rm -rf whole && find {PREFIX}/current/ -type f -exec sh -c ': >$1' sh {{}} \\;"
        )
        if machine.run(f"{EDGE} --version").returncode != 1:
            raise BoardFailure("with all files empty the command ends well")
        must_deploy(bench, machine)
        must_run(bench, machine)
    return ""


def pages_of_16_kib(bench: Bench) -> str:
    """A kernel as the Raspberry Pi 5 has."""
    with bench.board(deployed(bench), kernel=images.kernel("16k"), cpu="cortex-a76") as machine:
        if machine.must("getconf PAGESIZE").strip() != "16384":
            raise BoardFailure("the pages have another size")
        must_run(bench, machine)
        must_chat(machine)
    return ""


def must_chat(machine: Machine) -> None:
    """The chat model computes as on the workstation."""
    model = chat_model()
    machine.put(model, model.name)
    must_compute(machine, model, model.name)


def newer_kernel(bench: Bench) -> str:
    """Linux 6.12."""
    with bench.board(deployed(bench), kernel=images.kernel("6.12")) as machine:
        must_run(bench, machine)
        must_chat(machine)
        return machine.must("uname -r").strip()


def newer_python(bench: Bench) -> str:
    """Debian trixie with Python 3.13."""
    with bench.board(images.disk("trixie"), kernel=images.kernel("6.12")) as machine:
        must_deploy(bench, machine)
        must_run(bench, machine)
        return machine.must("python3 --version").strip()


def little_memory_in_1970(bench: Bench) -> str:
    """512 MB, and a clock that was never set."""
    with bench.board(options=("-m", "512M")) as machine:
        machine.must("sudo systemctl stop systemd-timesyncd; sudo date -s 1970-01-02")
        must_deploy(bench, machine)
        must_run(bench, machine)
    return ""


def userland_of_32_bits(bench: Bench) -> str:
    """A 64-bit kernel with 32-bit programs is refused."""
    with bench.board(images.disk("bookworm", "armhf", "1G")) as machine:
        must_refuse(deploy(bench, machine), "32-bit", "64-bit system")
    return ""


def names(bench: Bench) -> str:
    """A board that calls itself what a profile names is found without --target."""
    tree = WORK / "virt.dtb"
    told = {
        "Raspberry Pi 4 Model B Rev 1.4": "rpi4b",
        "Raspberry Pi 5 Model B Rev 1.0": "rpi5",
        "NVIDIA Jetson Orin Nano Developer Kit": "jetson-orin",
        "Orange Pi 5": "aarch64-generic",
    }
    for name, target in told.items():
        command = ["qemu-system-aarch64", "-M", f"virt,dumpdtb={tree}", "-cpu", bench.kind.cpu]
        subprocess.run([*command, "-smp", "2", "-m", "1G"], check=True, capture_output=True)
        program = Path(__file__).with_name("devicetree.py")
        own = WORK / "named.dtb"
        subprocess.run([sys.executable, str(program), str(tree), str(own), name], check=True)
        with bench.board(options=("-dtb", str(own))) as machine:
            options = ["--ssh", machine.ssh, "--dry-run", "--json", "-q"]
            command = [*AWQ_EDGE, "deploy", str(STORIES), "pi@127.0.0.1", *options]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0 or json.loads(done.stdout)["target"] != target:
                raise BoardFailure(f"{name} is taken for another board: {done.stdout}{done.stderr}")
    return f"{len(told)} names"


CASES: dict[str, Callable[[Bench], str]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        *(fresh_and_cut, again, second_model, cuts_of_a_fresh_one, cuts_of_an_update, damaged),
        *(pages_of_16_kib, newer_kernel, newer_python, little_memory_in_1970),
        *(userland_of_32_bits, names, service.service_at_boot, faults.few_megabytes),
        *(faults.full_disk, faults.without_sudo_and_venv, faults.read_only_root),
        *(faults.slow_card, faults.unreadable_model, faults.connection_lost),
        *(faults.killed_for_memory, faults.little_memory_with_swap),
    )
}
QUICK = ("fresh-and-cut", "again")
# The exit status where something is missing, and so nothing is known: no success, and no fault.
NOT_TRIED = 77


def own_wheel() -> Path:
    """The wheel for Arm, built if it is not up to date."""
    command = [*AWQ_EDGE, "build", "-t", "rpi4b", "-o", str(WORK / "dist"), "--json", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(done.stderr.strip())
    return Path(json.loads(done.stdout)["wheel"])


def main() -> int:
    """Runs the cases that the command line names."""
    parser = argparse.ArgumentParser(description="deploy on virtual boards")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help=", ".join(QUICK))
    parser.add_argument("--cuts", type=int, default=40, help="of each kind (default: 40)")
    parser.add_argument("--boots", type=int, default=2, help="after so many of them (default: 2)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--wheel", type=Path, help="one for Arm; by default it is built")
    arguments = parser.parse_args()
    # Boards end with the program that started them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = arguments.cases or (QUICK if arguments.quick else tuple(CASES))
    for name in chosen:
        if name not in CASES:
            parser.error(f"there is no case {name}; there are {', '.join(CASES)}")
    missing = missing_tools()
    if missing:
        print(f"no virtual board was tried: {', '.join(missing)} not installed")
        return NOT_TRIED
    begin = time.monotonic()
    try:
        wheel = (arguments.wheel or own_wheel()).resolve()
        kind, base = Kind(images.kernel("6.1")), images.disk()
    except Unavailable as error:
        print(f"no virtual board was tried: {error}")
        return NOT_TRIED
    digest = hashlib.sha256(base.name.encode() + wheel.read_bytes()).hexdigest()[:12]
    image = WORK / f"deployed-{digest}.img"
    numbers = arguments.cuts, arguments.boots, arguments.seed
    bench = Bench(wheel, *numbers, kind, base, image)
    rows = [("images and wheel", time.monotonic() - begin, "ok", "")]
    print(f"seed {arguments.seed}", flush=True)
    for name in chosen:
        begin = time.monotonic()
        print(f"{name}: {CASES[name].__doc__}", flush=True)
        try:
            rows.append((name, 0.0, "ok", CASES[name](bench)))
        except Unavailable as error:
            rows.append((name, 0.0, "not tried", str(error)))
        except (BoardFailure, subprocess.SubprocessError) as error:
            rows.append((name, 0.0, "FAILED", str(error)))
        rows[-1] = (name, time.monotonic() - begin, *rows[-1][2:])
        print(f"  {rows[-1][2]} {rows[-1][3]}", flush=True)
    print(f"\n{'case':22} {'time':>10}  result")
    for name, seconds, result, text in rows:
        print(f"{name:22} {seconds / 60:4.0f} min {seconds % 60:02.0f}  {result} {text}")
    results = {row[2] for row in rows}
    return 1 if "FAILED" in results else NOT_TRIED if "not tried" in results else 0


if __name__ == "__main__":
    sys.exit(main())
