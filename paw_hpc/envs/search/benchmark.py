"""Search QA as a benchmark: questions as tasks, a retriever shared by all episodes of a process, the agent's
view."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState, Panel, Session, Task
from paw_hpc.envs.panels import parse_name, sub_panel
from paw_hpc.envs.search import bm25, data
from paw_hpc.envs.search.batching import SearchDesk
from paw_hpc.envs.search.metrics import exact_match, f1
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.search.protocol import INVALID, NO_RESULTS, Action, exact_action, passages_text
from paw_hpc.envs.search.questions import Question, checksum, is_in_domain
from paw_hpc.envs.search.retriever import DENSE_META, Retriever, RetrieverFailure
from paw_hpc.envs.templates import load_template
from paw_hpc.recipe import EnvSection
from paw_hpc.system.data_paths import locked
from paw_hpc.system.errors import DataError, RecipeError
from paw_hpc.system.keys import INHERITED_KEY, read_key

CALLS = {"bm25": 1, "dense": 1, "http": 8}
"""Retriever calls under way at once: a server batches on its own side and profits from several."""


class SearchQA:
    """Implements `paw_hpc.envs.base.Benchmark`."""

    def __init__(self, env: EnvSection):
        self._env, self._template = env, load_template("search", env.prompt_template)
        self._desk: SearchDesk | None = None
        self._starting = asyncio.Lock()
        self._by_id: dict[str, Question] = {}

    @property
    def source(self) -> str:
        found, search = self._data(), self._env.search
        served = os.environ.get("PAW_RETRIEVER") or search.url
        retriever = (
            served if search.retriever == "http" else f"{search.retriever} in {search.index or 'the cache'}"
        )
        return f"{found.description}, retriever: {retriever}"

    def tasks(self, split: str) -> list[Task]:
        found = self._data()
        if split == "train":
            listed = [q.task(found.folder) for q in found.train if q.dataset in self._env.search.train_sets]
            if not listed:
                raise DataError(
                    "env.search.train_sets: no training question of "
                    f"{', '.join(self._env.search.train_sets)} in {found.folder}"
                )
            if self._env.train_games is not None and self._env.train_games < len(listed):
                return sub_panel(listed, self._env.train_games, seed=0, name="env.train_games")
            return listed
        listed = [q.task(found.folder) for q in found.test if _is_of(q.dataset, split)]
        if not listed:
            raise DataError(
                f"panel {split}: no question of it in {found.folder} ({found.kind} data); run `paw data "
                "search fetch`"
            )
        return listed

    def panel(self, name: str) -> Panel:
        split, count, seed = parse_name(name, "search")
        listed, kind = self.tasks(split), self._data().kind
        if count is not None:
            listed = sub_panel(listed, count, seed, name)
        full_name = name if kind == "official" else f"{kind} {name}"
        return Panel(full_name, tuple(listed), checksum([self.question(task) for task in listed]))

    def view(self, task: Task, seed: int) -> SearchView:
        env = self._env
        return SearchView(
            self.question(task).question,
            style=env.prompt,
            history=env.shown_history,
            max_steps=env.max_steps,
            validity=env.validity,
            template=self._template,
        )

    async def open(self, task: Task, members: int) -> Sequence[Session]:
        desk, question = await self._start(), self.question(task)
        return [SearchSession(question, desk, self._env) for _ in range(members)]

    async def close(self) -> None:
        if self._desk is not None:
            await self._desk.close()
        self._desk = None

    async def _start(self) -> SearchDesk:
        async with self._starting:
            if self._desk is None:
                retriever = await asyncio.to_thread(make_retriever, self._env)
                self._desk = SearchDesk(
                    retriever, max_batch=self._env.search.max_batch, calls=CALLS[self._env.search.retriever]
                )
            return self._desk

    def _data(self) -> data.SearchData:
        return data.load(self._env.search.data)

    def question(self, task: Task) -> Question:
        """Raises DataError where the data at hand lack it."""
        if not self._by_id:
            found = self._data()
            self._by_id = {q.task_id: q for q in (*found.train, *found.test)}
        if task.task_id not in self._by_id:
            raise DataError(f"{task.task_id}: no such question in {self._data().folder}")
        return self._by_id[task.task_id]


class SearchSession:
    """One episode: at most `max_steps` turns; an answer ends it, and so does the last turn."""

    def __init__(self, question: Question, desk: SearchDesk, env: EnvSection):
        self._question, self._desk, self._env = question, desk, env
        self._steps = 0

    async def reset(self) -> EnvironmentState:
        return EnvironmentState(self._question.question, ())

    async def step(self, action: str) -> EnvironmentState:
        self._steps += 1
        last, asked = self._steps >= self._env.max_steps, exact_action(action)
        if asked is not None and asked.kind == "answer":
            return self._judged(asked)
        if last:  # nobody would read what came back
            return EnvironmentState("", (), done=True)
        return EnvironmentState(
            INVALID if asked is None else await self._found(asked.text) if asked.text else NO_RESULTS, ()
        )

    async def close(self) -> None:
        pass

    def _judged(self, answer: Action) -> EnvironmentState:
        right = exact_match(answer.text, self._question.answers)
        reward = self._env.success_reward if right else 0.0
        return EnvironmentState(
            "", (), reward=reward, done=True, success=right, score=f1(answer.text, self._question.answers)
        )

    async def _found(self, query: str) -> str:
        search = self._env.search
        try:
            hits = await self._desk.search(query, search.topk)
        except RetrieverFailure as error:
            raise EnvironmentFailure(f"{self._question.task_id}: {error}") from None
        return passages_text([hit.passage for hit in hits], search.passage_words)


def make_retriever(env: EnvSection) -> Retriever:
    """The retriever of a recipe. The BM25 index of mini and generated data is built on first use.

    Raises:
        DataError: index or corpus missing or torn.
        UserError: the file with the server's key cannot be used.
    """
    search = env.search
    if search.retriever == "http":
        from paw_hpc.envs.search.remote import HttpRetriever

        url, file, where = search.url, search.key_file, "env.search.key_file"
        # the job's own (see cluster/supervise.py) stands in for the recipe's, with its key
        if own := os.environ.get("PAW_RETRIEVER"):
            url, file, where = own, os.environ.get(INHERITED_KEY), INHERITED_KEY
        if url is None:
            raise RecipeError(
                "env.search.url: retriever=http needs the server's address, unless `paw launch` starts one "
                "(cluster.retriever_node)"
            )
        key = None if file is None else read_key(file, where)
        return HttpRetriever(url, timeout_s=search.timeout_s, give_up_s=env.step_timeout_s, key=key)
    if search.retriever == "dense":
        from paw_hpc.envs.search.dense import DenseRetriever

        if search.index is None:
            raise RecipeError(
                "env.search.index: a dense retriever needs the folder that `paw data search build "
                "--retriever dense` made"
            )
        return DenseRetriever(Path(search.index).expanduser())
    return bm25.Bm25Retriever(Path(search.index).expanduser() if search.index else default_index(search.data))


def open_index(folder: Path, corpus: Path | None = None) -> Retriever:
    """The retriever of an index folder, whichever kind it is.

    Raises:
        DataError: no whole index, or its corpus is gone.
    """
    if (folder / DENSE_META).is_file():
        from paw_hpc.envs.search.dense import DenseRetriever

        return DenseRetriever(folder, corpus)
    return bm25.Bm25Retriever(folder, corpus)


def default_index(source: data.DataSource) -> Path:
    """The folder of the BM25 index of a source's corpus in the cache; built now where that takes seconds.

    Raises:
        DataError: official data, whose index takes an hour or more, without an index.
    """
    found = data.load(source)
    folder = data.index_folder(found.corpus)
    with locked(folder):
        if not folder.is_dir():
            if found.kind == "official":
                raise DataError(
                    f"env.search.index: no index of {found.corpus}; run `paw data search build`, or use a "
                    "server (retriever=http, url)"
                )
            bm25.build_bm25(found.corpus, folder)
    return folder


def _is_of(dataset: str, panel: str) -> bool:
    if panel in ("in_domain", "out_of_domain"):
        return is_in_domain(dataset) == (panel == "in_domain")
    return panel in ("test", dataset)
