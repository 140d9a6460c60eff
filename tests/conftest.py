"""What has to be decided before anything heavy is imported, whichever tests run.

One thread per test process: tensors here are small, and threads that wait for each other on a shared machine
cost far more than they save. And without a GPU the Triton kernels run in Triton's interpreter, which must be
asked for before any library imports Triton.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from paw_hpc.recipe.doors import ALGORITHMS, BENCHMARKS, ENGINES, LAUNCHERS, WORLD_MODEL_LOSSES
from tests import beside

pytest_plugins = ["pytester"]

torch.set_num_threads(1)

# A shell has its background processes ignore Ctrl-C, and `make test` has one: it ends with the others, its
# servers and nodes with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    beside.mark(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if wrong := beside.unmarked_skip(item, report):
        report.outcome, report.longrepr = "failed", wrong
    return report


@pytest.fixture(autouse=True)
def no_plugin_of_another_test() -> Iterator[None]:
    """What a plugin brings is a process's own: the next test begins without it."""
    yield
    for name in [name for name in sys.modules if name.startswith("paw_plugin_")]:
        del sys.modules[name]
        for door in (ALGORITHMS, BENCHMARKS, ENGINES, LAUNCHERS, WORLD_MODEL_LOSSES):
            door._added.clear()
