"""A scripted player that knows which searches lead to the answer: demonstrations from which a small policy is
cloned.

It plays training questions with the recipe's retriever and prompt. Some of its searches go astray and some of
its lines are no action, as a policy's own will, and it goes on from there: what is cloned is always what
leads to the answer. It answers only what it has read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paw_hpc.envs.alfworld.tokenizer import save_tokenizer
from paw_hpc.envs.base import Demonstration, EnvironmentState, Lessons, Taught
from paw_hpc.envs.search import generate
from paw_hpc.envs.search.benchmark import SearchQA, make_retriever
from paw_hpc.envs.search.metrics import contains_answer
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.search.protocol import INVALID, Action, passages_text
from paw_hpc.envs.search.questions import Question
from paw_hpc.envs.search.retriever import Retriever
from paw_hpc.recipe import Recipe
from paw_hpc.recipe.env import COMPACT
from paw_hpc.system.seeding import generator

_IDLE = "I wonder what this may be."
"""A line that is no action."""


def lessons(recipe: Recipe, console: object = None) -> Lessons:
    """What the player teaches with the recipe's prompt (section `warm_start`)."""
    return Lessons(demonstrations(recipe), lambda folder: save_tokenizer(texts(recipe), folder))


def demonstrations(recipe: Recipe) -> Iterator[Demonstration]:
    """The teacher's play of `warm_start.games` training questions, `len(warm_start.hints)` episodes each.

    `warm_start.detour` is the share of searches that go astray (another question's first one),
    `warm_start.fumble` that of lines that are no action, `warm_start.habit` that of searches in whose place a
    guess (another question's answer) is said, which is what is cloned there; it then searches.
    """
    benchmark = SearchQA(recipe.env)
    tasks = benchmark.tasks("train")
    order = generator(recipe.seed, "teacher-order").permutation(len(tasks))[: recipe.warm_start.games]
    chosen = [tasks[int(i)] for i in order]
    questions = [benchmark.question(task) for task in chosen]
    desk = _Desk(make_retriever(recipe.env), recipe)
    for number, question in enumerate(questions):
        for repeat in range(len(recipe.warm_start.hints)):
            rng = generator(recipe.seed, "teacher", number, repeat)
            yield from _play(question, questions, benchmark.view(chosen[number], 0), desk, recipe, rng)
    desk.close()


def texts(recipe: Recipe) -> Iterator[str]:
    """Every word that the policy meets in the prompts of the generated world."""
    yield "question: search: answer: found: invalid step 1 2 3 4 5 6 7 8 search answer"
    yield "No results. Doc Title ( )"
    yield from generate.words()


class _Desk:
    """The retriever, asked once per query."""

    def __init__(self, retriever: Retriever, recipe: Recipe):
        self._retriever, self._search, self._known = retriever, recipe.env.search, dict[str, str]()

    def found(self, query: str) -> str:
        if query not in self._known:
            (hits,) = self._retriever.search([query], self._search.topk)
            self._known[query] = passages_text([hit.passage for hit in hits], self._search.passage_words)
        return self._known[query]

    def close(self) -> None:
        self._retriever.close()


def _play(
    question: Question,
    others: Sequence[Question],
    view: SearchView,
    desk: _Desk,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Iterator[Demonstration]:
    env, style = recipe.env, recipe.env.prompt
    taught = Taught(view, env.conversation)
    view.start(EnvironmentState(question.question, ()))
    ahead, read = list(question.searches or (question.question,)), ""
    for _ in range(env.max_steps):
        if not ahead and not contains_answer(read, question.answers):
            return  # the answer was not found: there is nothing to teach
        wanted = Action("search", ahead[0]) if ahead else Action("answer", question.answers[0])
        guess = (
            Action("answer", others[int(rng.integers(len(others)))].answers[0])
            if ahead and rng.random() < recipe.warm_start.habit
            else None
        )
        yield taught.demonstration(spoken(guess or wanted, style))
        draw = rng.random()
        if draw < recipe.warm_start.fumble:
            taught.observe(_IDLE, "", EnvironmentState(INVALID, ()))
        elif draw < recipe.warm_start.fumble + recipe.warm_start.detour:
            other = others[int(rng.integers(len(others)))]
            astray = Action("search", (other.searches or (other.question,))[0])
            taught.observe(spoken(astray, style), str(astray), EnvironmentState(desk.found(astray.text), ()))
        elif wanted.kind == "answer":
            return
        else:
            read = desk.found(ahead.pop(0))
            taught.observe(spoken(wanted, style), str(wanted), EnvironmentState(read, ()))


def spoken(action: Action, style: str) -> str:
    """An action as the policy is to say it in a style of prompt."""
    if style in COMPACT:
        return f"{action.kind} {action.text}".lower()
    thought = (
        f"I need to look up {action.text}."
        if action.kind == "search"
        else f"The passages say it: {action.text}."
    )
    return f"<think>{thought}</think><{action.kind}>{action.text}</{action.kind}>"
