"""`make fuzz`: all targets in turn, with inputs that no earlier call has tried, until the time is over.

    python -m tests.fuzz [MINUTES] [TARGET ...]

What fails is shown, made as small as hypothesis can make it, and kept in build/fuzz: the next call begins
with it. The status is 1 then.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz import (
    test_answers,
    test_conversations,
    test_data_files,
    test_recipes,
    test_run_files,
    test_servers,
)
from tests.fuzz.harness import Target

MODULES = (test_recipes, test_answers, test_conversations, test_data_files, test_run_files, test_servers)
TARGETS: tuple[Target, ...] = tuple(target for module in MODULES for target in module.TARGETS)
DATABASE = Path("build") / "fuzz"
AT_A_TIME = 500
"""Inputs of a target before the next one's turn."""


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    waiting = [target for target in TARGETS if not sys.argv[2:] or target.name in sys.argv[2:]]
    logging.disable()  # targets make the code say thousands of times what it does not like
    tried, failed, end = (
        dict.fromkeys((target.name for target in waiting), 0),
        set[str](),
        time.monotonic() + 60 * minutes,
    )
    while waiting and time.monotonic() < end:
        for target in list(waiting):
            if time.monotonic() >= end:
                break
            try:
                target.search(AT_A_TIME, DATABASE)
                tried[target.name] += AT_A_TIME
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                traceback.print_exc()
                failed.add(target.name)
                waiting.remove(target)
    for name, count in tried.items():
        print(f"{name:24} {count:8} inputs{'  FAILED' if name in failed else ''}")
    return 1 if failed or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
