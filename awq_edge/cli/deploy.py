"""``awq-edge deploy``: from a model file here to a tested chat on a board, in one command."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from awq_edge.cli._options import Json, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.cli._targets import MemoryMax, Service, Wheel, service_plan
from awq_edge.cli.build import wheel_for
from awq_edge.model import Model
from awq_edge.profiles import Profile, load_profile
from awq_edge.quantities import size_text

if TYPE_CHECKING:
    from awq_edge.device.answers import Facts
    from awq_edge.device.bundle import Requirements


def deploy(
    file: ModelFile,
    host: Annotated[str, typer.Argument(metavar="USER@HOST", help="As ssh takes it.")],
    target: Annotated[
        Optional[str],
        typer.Option("--target", "-t", help="The device; by default what the board says it is."),
    ] = None,
    prefix: Annotated[
        Optional[str],
        typer.Option(help="Folder on the board; by default ~/.local/share/awq-edge."),
    ] = None,
    wheel: Wheel = None,
    service: Service = None,
    memory_max: MemoryMax = None,
    ssh: Annotated[
        str, typer.Option(help="The ssh program with options, for example 'ssh -p 2222'.")
    ] = "ssh",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the board, tell the steps, change nothing.")
    ] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Go on if the board's memory looks too small.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy FILE and the runtime to a board, install, test, and generate a first text there."""
    from awq_edge.device import deploy as steps
    from awq_edge.device.bundle import collect, requirements
    from awq_edge.device.ssh import Remote

    output = Output(as_json=as_json, quiet=quiet)
    options = ["--ignore-memory"] if ignore_memory else []
    check_options = [*options, *(["--prefix", prefix] if prefix else [])]
    plan = service_plan(service, memory_max)
    with Model.open(file):  # a bad file is told before a password is asked for
        pass
    with Remote(host, ssh) as remote, tempfile.TemporaryDirectory(prefix="awq-edge-") as folder:
        profile = load_profile(target) if target else steps.identify(remote)
        # Before two minutes of compiling: is the board fit for the model?
        needs = requirements(file, profile, steps.SUPPORTED_PYTHONS, service=plan)
        facts = steps.check(remote, needs, check_options)
        output.status(
            f"{host}: {facts.board or facts.machine}, glibc {facts.glibc}, Python {facts.python}; "
            f"{size_text(facts.memory_free_bytes)} of memory and "
            f"{size_text(facts.disk_free_bytes)} of disk free"
        )
        if dry_run:
            _tell_plan(output, profile, needs, facts, host)
            return
        own = wheel_for(profile, wheel, Path(folder) / "wheel", output)
        work = Path(folder) / "bundle"
        bundle = collect(file, profile, own, [facts.python], work, output.status, plan)
        with steps.alone(remote, facts.prefix):
            have = steps.arrived(remote, bundle, facts.prefix)
            if sum(have.values()):
                output.status(f"{size_text(sum(have.values()))} are already there")
            with output.progress("Copying", bundle.size_bytes) as bar:
                bar.advance(sum(have.values()))
                steps.copy(remote, bundle, facts.prefix, have, bar.advance)

            def tell(line: str) -> None:
                if not line.startswith("Done."):  # told at the end, after the report
                    output.status(line)

            steps.install(remote, facts.prefix, options, tell)
            report = steps.first_run(remote, facts.prefix, file.name)
    _tell_report(output, profile.member(facts.board, facts.memory_total_bytes), report)
    program = f"{facts.prefix}/current/bin/awq-edge"
    model = f"{facts.prefix}/models/{file.name}"
    command = shlex.join([program, "run", model, "-p", "Once upon a time"])
    output.status(f"\nOn the board: {command}")
    if plan is not None:
        output.status(
            f"The page from here: ssh -L 8080:127.0.0.1:8080 {host}, then http://127.0.0.1:8080/"
        )
    output.json(
        {"host": host, "target": profile.name, "prefix": facts.prefix, "service": service, **report}
    )


def _tell_plan(
    output: Output, profile: Profile, needs: "Requirements", facts: "Facts", host: str
) -> None:
    plan = [
        f"build the library and the wheel for {profile.machine}",
        f"fetch the packages for Python {facts.python} (about 35 MB)",
        f"copy {needs.model.name} ({size_text(needs.model.stat().st_size)}), the wheel and the "
        f"packages to {facts.prefix}/incoming on {host}, and compare their checksums there",
        f"run install.sh there: the packages and the model into a new release in {facts.prefix}, "
        "the self-test, the command in ~/.local/bin",
        *(
            []
            if needs.service is None
            else [f"install the service awq-edge.service ({needs.service.kind}) and start it"]
        ),
        "generate a first text there, and report speed, memory, temperature and throttling",
    ]
    for number, step in enumerate(plan, 1):
        output.line(f"{number}. would {step}")
    output.json({"host": host, "target": profile.name, "prefix": facts.prefix, "steps": plan})


def _tell_report(output: Output, profile: Profile, report: dict[str, Any]) -> None:
    output.line(f"{report['prompt']}{report['text']}\n")
    decode = report["decode_tokens_per_second"]
    limit = profile.decode_roofline(report["decode_bytes"])
    share = "" if limit is None else f"; the memory of a {profile.title} allows {limit:.1f}"
    before, after = report["temperature"]
    fields = {
        "decode": f"{decode:.1f} tokens/s{share}",
        "prompt": f"{report['prefill_tokens_per_second']:.1f} tokens/s",
        "kernels": f"{report['kernels']}, {report['threads']} threads",
        "peak memory": f"{size_text(report['peak_rss_bytes'])}, the mapped model included",
        "temperature": (
            f"{before:.0f} °C, then {after:.0f} °C"
            if before is not None and after is not None
            else "unknown"
        ),
        "throttling": _throttling(*report["throttling"]),
    }
    output.fields(fields)


def _throttling(before: Optional[dict[str, bool]], after: Optional[dict[str, bool]]) -> str:
    """The firmware's word before and after the first generation."""
    if before is None or after is None:
        return "unknown: only a Raspberry Pi tells"
    told = []
    for state in (before, after):
        names = [name.replace("_", " ") for name, is_so in state.items() if is_so]
        told.append(", ".join(names) or "none")
    return told[0] if told[0] == told[1] else f"{told[0]}; then {told[1]}"
