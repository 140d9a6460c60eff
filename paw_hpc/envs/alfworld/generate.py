"""New ALFWorld games, for machines that have none: composed, proven by playing, kept in the cache.

Every game is played once: its walkthrough must be admissible at each step, win with the last command, and not
before. A set of games is named by what it was made of, so an unchanged one is found again and never mistaken
for another; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_hpc.envs.alfworld.official import installed_logic
from paw_hpc.envs.alfworld.store import Store, open_store, write_store
from paw_hpc.envs.sampling import proportional_shares
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError

_COUNTS = {
    "train": (200, 100, 120, 90, 90, 150),
    "valid_seen": (35, 13, 27, 16, 25, 24),
    "valid_unseen": (24, 18, 31, 23, 21, 17),
    "valid_train": (46, 19, 37, 25, 28, 45),
}
DEFAULT_COUNTS: dict[str, dict[str, int]] = {
    split: dict(zip(TASK_TYPES, counts, strict=True)) for split, counts in _COUNTS.items()
}
"""Games per split and task type. Validation splits have the official ones' numbers; training sets stay small
enough to be made while one waits."""
SHIPPED = Path(__file__).resolve().parent / "shipped_games"
"""The games that the quickstart trains on and is judged on, as the generator made them: 300 games take
minutes, and no one should wait for them."""
CHUNK = 16
"""Games per process: TextWorld's memory grows with each game, so a process is retired after this many."""


@dataclass(frozen=True)
class Batch:
    """A set of generated games of one task type."""

    split: str
    task_type: str
    count: int
    seed: int = 0

    def path(self) -> Path:
        """Where it is: in the package, for the games of the quickstart, else in the cache, where it is made
        on first use."""
        shipped = SHIPPED / self.name()
        return shipped if shipped.is_file() else data_paths.cache_dir("alfworld") / self.name()

    def name(self) -> str:
        """Covers the generator's own text (but for its imports), ALFWorld's release and this order: no other
        games are mistaken for these, shipped ones neither.
        """
        sources = ("rooms.py", "scenes.py", "compose.py")
        texts = [(Path(__file__).parent / name).read_text().splitlines() for name in sources]
        own = ["\n".join(line for line in text if not line.startswith("from paw_hpc")) for text in texts]
        parts = [*own, *installed_logic(), importlib.metadata.version("alfworld")]
        key = hashlib.sha256(
            json.dumps([*parts, self.split, self.task_type, self.count, self.seed]).encode()
        ).hexdigest()[:16]
        return f"generated-{self.split}-{self.task_type}-{key}.zip"


def default_stores(split: str, task_types: Sequence[str] = TASK_TYPES) -> list[Store]:
    """The generated games that stand in for a split, made on first use: a store per task type."""
    return [open_store(path) for path in generate(split, task_types=task_types)]


def generate(
    split: str,
    count: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    task_types: Sequence[str] = TASK_TYPES,
) -> list[Path]:
    """Make the games of a split (as far as they are not there yet) and return their stores, one per task
    type.

    Args:
        split: train, valid_seen, valid_train (scenes of training) or valid_unseen (scenes that training never
            sees).
        count: games in all, divided among the task types as by default; none: the default numbers, which
            `tasks(..., "generated")` plays.
        workers: processes; none: one per core, at most 8; 0: in this process.

    Raises:
        DataError: unknown split, no room in the cache, ALFWorld not installed.
        RuntimeError: a worker failed, or a game was not won by its walkthrough (a defect of the generator).
    """
    if split not in DEFAULT_COUNTS:
        raise DataError(f"no generated split '{split}'; one of {', '.join(DEFAULT_COUNTS)}")
    sizes = {t: DEFAULT_COUNTS[split][t] for t in TASK_TYPES if t in task_types}
    shares = sizes if count is None else proportional_shares(sizes, count)
    batches = [Batch(split, task_type, share, seed) for task_type, share in shares.items() if share]
    missing = [batch for batch in batches if not batch.path().exists()]
    if missing:
        with data_paths.locked(data_paths.cache_dir("alfworld") / "generating"):
            _make_all(
                [batch for batch in missing if not batch.path().exists()],
                _default_workers() if workers is None else workers,
            )
    return [batch.path() for batch in batches]


def prove(game: Mapping[str, Any]) -> None:
    """Play the walkthrough. Raises RuntimeError unless every command is admissible and the last one, and none
    before, wins."""
    from paw_hpc.envs.alfworld.engine import GameEngine

    engine = GameEngine(game)
    _, admissible, won = engine.reset()
    for command in game["walkthrough"]:
        if won:
            raise RuntimeError(f"won before '{command}' of {game['walkthrough']}")
        if command not in admissible:
            raise RuntimeError(f"'{command}' of {game['walkthrough']} is not admissible")
        _, admissible, won = engine.step(command)
    if not won:
        raise RuntimeError(f"not won by {game['walkthrough']}")


def proven_games(
    split: str, task_type: str, seed: int, indices: Sequence[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compose and prove games. Raises RuntimeError, naming the game that fails."""
    from paw_hpc.envs.alfworld.compose import compose

    for index in indices:
        task_id, game = compose(split, task_type, index, seed)
        try:
            prove(game)
        except RuntimeError as error:
            raise RuntimeError(f"generated game {task_id}: {error}") from None
        yield task_id, game


def _make_all(batches: Sequence[Batch], workers: int) -> None:
    total, done, started, told = sum(batch.count for batch in batches), 0, time.monotonic(), time.monotonic()
    if not total:
        return
    print(
        f"generating {total} ALFWorld games ({batches[0].split}; once, kept in {data_paths.cache_root()}) "
        "...",
        file=sys.stderr,
    )
    # Long games last would leave one worker alone at the end; the cheap ones come last.
    jobs = [(batch, start) for batch in reversed(batches) for start in range(0, batch.count, CHUNK)]
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        futures = {
            pool.submit(_make_chunk, batch, start, workers == 0): (batch, start) for batch, start in jobs
        }
        try:
            for future in as_completed(futures):
                future.result()
                batch, start = futures[future]
                done += min(CHUNK, batch.count - start)
                if time.monotonic() - told > 5 or done == total:
                    told = time.monotonic()
                    print(f"  {done}/{total} games, {told - started:.0f} s", file=sys.stderr)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for batch in batches:
        _bind(batch)


def _make_chunk(batch: Batch, start: int, here: bool) -> None:
    target = _chunk_path(batch, start)
    if target.exists():
        return
    order = [
        batch.split,
        batch.task_type,
        str(batch.seed),
        str(start),
        str(min(start + CHUNK, batch.count)),
        str(target),
    ]
    if here:
        main(order)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-m", __name__, *order], env=environment, capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError(
            f"generating {batch.split} {batch.task_type} games failed (exit status {child.returncode}): "
            f"{child.stderr.strip()[-2000:]}"
        )


def _bind(batch: Batch) -> None:
    """Join a batch's chunks into its store."""
    chunks = [_chunk_path(batch, start) for start in range(0, batch.count, CHUNK)]
    pairs = ((task_id, game) for chunk in chunks for task_id, game in json.loads(chunk.read_text()))
    about = {
        "verb": "move",
        "origin": "generated",
        "split": batch.split,
        "task_type": batch.task_type,
        "count": batch.count,
        "seed": batch.seed,
    }
    write_store(batch.path(), pairs, about)
    for chunk in chunks:
        chunk.unlink()


def _chunk_path(batch: Batch, start: int) -> Path:
    return batch.path().with_suffix(f".{start}.json")


def _default_workers() -> int:
    return min(len(os.sched_getaffinity(0)), 8)


def main(arguments: Sequence[str]) -> None:
    """Write one chunk: split, task type, seed, first index, end index, file."""
    split, task_type, seed, start, stop, target = arguments
    games = list(proven_games(split, task_type, int(seed), range(int(start), int(stop))))
    with data_paths.atomic_file(Path(target)) as file:
        file.write(json.dumps(games).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
