"""The load benchmark of the OpenEnv server, at toy size: everybody is killed once, and it finds what it looks
for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openenv")

from benchmarks.envs_load import __main__ as envs_load


@pytest.mark.slow
def test_killed_clients_killed_servers_and_hostile_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "cache"))
    small = [
        "--data",
        "generated",
        "--sessions",
        "16",
        "--clients",
        "2",
        "--walks",
        "24",
        "--half-open",
        "12",
    ]
    found = envs_load.main(["search", *small, "--seconds", "9", "--kill-client-s", "4", "--sample-s", "0.2"])
    played = found.played
    assert played.walks > 16 and not played.differences and not played.errors
    assert found.swapped == 2, "the control: exchanged sessions are noticed"
    assert found.client_kills and len(found.server_kills) == 2 and found.lost_in_peace == 0
    assert [files for _, files in [*found.server_kills, found.stopped]] == [0, 0, 0]
    assert (
        found.all_killed[0] == 0
        and found.places == (16 + envs_load.SPARE, 16 + envs_load.SPARE)
        and found.at_rest is not None
        and found.at_rest.processes == 1
    )
    strangers = {(kind.partition(",")[0], came) for kind, came in found.harm if "key" in kind}
    # (Those that were amid it when the server was killed were broken off.)
    assert {came for _, came in strangers} <= {
        "status 403",
        "status 401",
        "ConnectionResetError",
        "InvalidMessage",
        "closed",
    }, strangers
    assert (
        found.harm["a message too long", "closed, 1009"]
        and found.harm["more sessions than places", "CAPACITY_REACHED"]
    )
    assert not [line for line in found.log if "Traceback" in line or "ERROR" in line], found.log
