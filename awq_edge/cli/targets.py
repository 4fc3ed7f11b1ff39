"""``awq-edge targets``: the devices that awq-edge builds for, and what each can run."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from dataclasses import asdict

from awq_edge.cli._options import Json
from awq_edge.cli._output import Output
from awq_edge.profiles import Profile, load_profiles

# What the columns say of a model: billions of weights, and the bytes that one weight takes on
# average at 4 bits with scales, zero-points and an 8-bit head.
_EXAMPLE_SIZES = (0.5, 1.1, 1.5, 7.0)
_BYTES_PER_WEIGHT = 0.56
# The share of the memory that a system and Python leave to a model.
_SHARE = 0.75


def targets(as_json: Json = False) -> None:
    """List the devices that 'build', 'bundle' and 'deploy' know."""
    output = Output(as_json=as_json)
    profiles = load_profiles()
    output.table(
        ("target", "device", "kernels", "RAM, GiB", "memory, GB/s", "runs, 4 bits", "1B, tokens/s"),
        [
            (
                profile.name,
                profile.title,
                profile.kernels,
                ", ".join(str(size) for size in profile.ram_gib) or "any",
                "" if profile.read_gb_s is None else f"{profile.read_gb_s:g}",
                _largest(profile),
                _rate(profile),
            )
            for target in profiles
            for profile in target.devices()
        ],
    )
    for profile in profiles:
        source = f" Memory rate: {profile.read_source}." if profile.read_source else ""
        output.line(f"{profile.name}: {profile.cpu}.{source}")
    output.line(
        "\nThe last column is the memory's limit for a model of one billion weights, not a measured"
        "\nspeed; 'awq-edge inspect FILE' and 'awq-edge bench FILE' tell of a file and a machine."
    )
    output.json([asdict(profile) for profile in profiles])


def _largest(profile: Profile) -> str:
    """The largest example that fits, per memory size."""
    fits = []
    for ram in profile.ram_gib:
        sizes = [s for s in _EXAMPLE_SIZES if s * _BYTES_PER_WEIGHT <= ram * 1.0737 * _SHARE]
        fits.append(f"{sizes[-1]:g}B" if sizes else "-")
    return ", ".join(fits) or "what fits its RAM"


def _rate(profile: Profile) -> str:
    limit = profile.decode_roofline(round(1e9 * _BYTES_PER_WEIGHT))
    return "" if limit is None else f"≤ {limit:.0f}"
