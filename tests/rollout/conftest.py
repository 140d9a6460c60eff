"""The servers that several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rollout.site import PYTHON, REQUIRED, Site


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two SGLang servers. Required where PAW_REQUIRE_SGLANG=1."""
    if not PYTHON.exists() and not REQUIRED:
        pytest.skip("SGLang is not installed: make setup-sglang")
    site = Site(tmp_path_factory.mktemp("servers"))
    yield site
    site.close()


@pytest.fixture
def site(servers: Site) -> Iterator[Site]:
    """The servers, both of them up with the shipped policy's weights, published by disk."""
    servers.take("disk")
    servers.change_weights(0)
    servers.publish()
    servers.all_ready()
    servers.fleet.drain_metrics()
    yield servers
