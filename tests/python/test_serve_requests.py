"""Requests by their schemas, sound and damaged: some hundreds of what fuzz_requests.py makes."""

from __future__ import annotations

from fuzz_requests import fuzz
from serving import Server


def test_damaged_requests_crash_nothing_and_leak_nothing(server: Server) -> None:
    fuzzing = fuzz(server, 400, seed=7, clients=3)
    assert not fuzzing.faults, fuzzing.faults[:3]
    assert sum(fuzzing.statuses.values()) == 400
    # Most are refused; enough are sound to be answered.
    assert fuzzing.statuses[200] > 80
    assert fuzzing.statuses[400] > 120
