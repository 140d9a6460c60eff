"""The benchmark: its tasks, the panels that a policy is judged on, and the keys of `env`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from paw_hpc.recipe.doors import BENCHMARKS, Choice, check_options
from paw_hpc.recipe.section import NonNegative, Section

TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
TASK_TYPES: tuple[str, ...] = get_args(TaskType)

QuestionSet = Literal["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
QUESTION_SETS: tuple[QuestionSet, ...] = get_args(QuestionSet)
IN_DOMAIN_SETS: tuple[QuestionSet, ...] = ("nq", "hotpotqa")
"""The sets that the paper trains on; the other five are out of domain."""

PromptStyle = Literal["paper", "compact", "conversation", "compact-conversation"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
COMPACT: tuple[PromptStyle, ...] = ("compact", "compact-conversation")
"""Few words, answered by a bare command."""
CONVERSATIONS: tuple[PromptStyle, ...] = ("conversation", "compact-conversation")
"""Every prompt of an episode goes on from the one before."""

_PART = re.compile(r"(?::(?P<count>[1-9]\d*)@(?P<seed>\d+))?")


def panels_of(benchmark: str) -> tuple[str, ...]:
    """What a benchmark's policies are judged on; the first is the default of `eval.panel`. Raises ValueError
    for an unknown benchmark."""
    return BENCHMARKS.find(benchmark).panels


def split_panel_name(name: str, benchmark: str = "alfworld") -> tuple[str, int | None, int]:
    """`valid_seen:40@0` -> (split, number of tasks or None for all, seed). Raises ValueError for what is no
    panel of this benchmark."""
    known = panels_of(benchmark)
    split, colon, part = name.partition(":")
    match = _PART.fullmatch(colon + part)
    if split not in known or match is None:
        raise ValueError(f"no such panel; one of {', '.join(known)}, or PANEL:N@SEED such as {known[0]}:40@0")
    return split, int(match["count"]) if match["count"] else None, int(match["seed"] or 0)


class WebshopSection(Section):
    """What is WebShop's own (env.name: webshop)."""

    catalogue: Literal["auto", "small", "full", "generated"] = "auto"
    """small: the 1000-product set; full: all 1.18M products; generated: a synthetic catalogue in the same
    schema; auto: the largest at hand."""
    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions made from attributes and options, or those that people wrote."""
    tagger: Literal["auto", "spacy", "textblob"] = "auto"
    """Finds the nouns of a title for the reward. auto: spaCy with an English model where both are installed,
    else TextBlob; the run says which."""
    num_products: PositiveInt | None = None
    """Cut the catalogue after this many products; none: all of it."""


class SearchSection(Section):
    """What is search QA's own (env.name: search)."""

    data: Literal["auto", "official", "mini", "generated"] = "auto"
    """official: the seven sets and wiki-18; mini: 4,359 real questions over 20,201 real passages; generated:
    a made-up world; auto: the first one that is at hand, and the run says which."""
    train_sets: Annotated[tuple[QuestionSet, ...], Field(min_length=1)] = IN_DOMAIN_SETS
    """Question sets that are trained on."""
    retriever: Literal["bm25", "dense", "http"] = "bm25"
    """bm25 and dense: in this process, from `index`; http: a server at `url` (see `paw data search
    serve`)."""
    index: str | None = None
    """Folder made by `paw data search build`; none: BM25 over the corpus of `data`, built on first use where
    it is small."""
    url: str | None = None
    """Address of a server that answers POST /retrieve, for example http://node7:8000; none: the one that the
    job starts (cluster.retriever_node)."""
    key_file: str | None = None
    """With `url`: a file with the key that the server was started with (`paw data search serve --key-file`),
    which only you can read. A server that the job starts has the job's own key."""
    topk: PositiveInt = 3
    """Passages that a search returns."""
    passage_words: PositiveInt | None = None
    """Show only this many words of a passage; none: all of it."""
    max_batch: PositiveInt = 256
    """Queries that the retriever is asked at once."""
    timeout_s: PositiveFloat = 20.0
    """http: longest wait for one answer. Tries are repeated with growing waits until env.step_timeout_s has
    passed; then the episode failed by the environment."""

    @model_validator(mode="after")
    def _reachable(self) -> SearchSection:
        if self.url is not None and self.retriever != "http":
            raise ValueError("url: give it with retriever=http, and only then")
        if self.key_file is not None and self.url is None:
            raise ValueError("key_file: it goes with url; a server that the job starts gets a key of its own")
        return self


class EnvSection(Section):
    """The benchmark and its protocol (paper, App. A.1)."""

    name: Annotated[str, Choice(BENCHMARKS)] = "alfworld"
    """The benchmark; one more is brought by `plugins`."""
    options: dict[str, Any] = Field(default={})
    """Keys of a benchmark that a plugin brings."""
    games: Literal["auto", "official", "generated"] = "auto"
    """ALFWorld. auto: the official games where they are at hand, else generated ones; the run says which."""
    task_types: Annotated[tuple[TaskType, ...], Field(min_length=1)] = TASK_TYPES  # type: ignore[assignment]
    """ALFWorld: the kinds of task that are played, in training and on panels."""
    webshop: WebshopSection = WebshopSection()
    search: SearchSection = SearchSection()
    train_games: PositiveInt | None = None
    """Use only this many training tasks (a seeded choice over the sorted list); none: all of them."""
    max_steps: PositiveInt = 50
    """An episode is over after this many steps."""
    history: Annotated[int, Field(ge=0)] | Literal["all"] = 2
    """Earlier (observation, action) pairs in the prompt; all: every one of them."""
    prompt: PromptStyle = "paper"
    """paper: the full instructions with <think> and <action>; compact: a short form for tiny models from
    scratch, the answer is the bare command; conversation: begins as paper does, and then every prompt is the
    one before, its response as it was sampled, and the next observation as a turn of its own (with
    history=all; see docs/trajectories.md); compact-conversation: the same, begun and answered as compact
    is."""
    prompt_template: Annotated[str, Field(min_length=1)] | None = None
    """The wording of the paper's style (see docs/prompts.md). none or default: our own; reference: the
    reference's facts, order and forms in our own words; else a Jinja2 file, which is looked for from the
    current folder and kept with its whole path."""
    validity: Literal["admissible", "format"] = "admissible"
    """Which steps pay the penalty. admissible: those whose action is not well-formed or, where the benchmark
    lists them, not among the admissible ones. format: those whose response is not well-formed by the
    reference's rule for the benchmark (`paw_hpc.envs.answers`), whether or not the action can be taken; the
    rule also reads the action its own way. With a compact prompt it means: blank, or with a Chinese
    character."""
    success_reward: float = 10.0
    """R_max of eq. 10; failure is worth 0."""
    invalid_penalty: NonNegative = 0.1
    """Subtracted from the reward of a step whose action was invalid (see validity); lambda never sees it."""
    workers: PositiveInt = 2
    """ALFWorld: processes that load games; each episode then lives in a fork of its own."""
    step_timeout_s: PositiveFloat = 120.0
    """Longest wait for one reset or step; then the environment counts as failed, and the episode is not
    trained on."""

    @field_validator("prompt_template")
    @classmethod
    def _whole_path(cls, choice: str | None) -> str | None:
        """A stored recipe finds its template from any folder."""
        if choice in (None, "default", "reference"):
            return None if choice == "default" else choice
        try:
            return str(Path(choice).expanduser().absolute())
        except RuntimeError:  # ~nobody
            raise ValueError(
                f"prompt_template: {choice}: no such user's home; write the whole path"
            ) from None

    @model_validator(mode="after")
    def _template_is_used(self) -> EnvSection:
        if self.prompt_template is not None and self.compact:
            raise ValueError(
                f"prompt_template: prompts of prompt={self.prompt} are made by no template; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _conversation_keeps_all(self) -> EnvSection:
        if self.conversation and self.history != "all":
            raise ValueError(
                f"history: {self.history}, but prompt={self.prompt} goes on from all that was said; set "
                "history=all"
            )
        return self

    @property
    def conversation(self) -> bool:
        """Every prompt of an episode goes on from the one before."""
        return self.prompt in CONVERSATIONS

    @property
    def compact(self) -> bool:
        """Few words, answered by a bare command."""
        return self.prompt in COMPACT

    @property
    def shown_history(self) -> int:
        """`history` as a number: how many steps at most."""
        return self.max_steps if self.history == "all" else self.history

    @model_validator(mode="after")
    def _own_keys(self) -> EnvSection:
        owners = {"games": "alfworld", "task_types": "alfworld", "webshop": "webshop", "search": "search"}
        for key, owner in owners.items():
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: a key of {owner}, and name is {self.name}; leave it out")
        check_options(BENCHMARKS, self.name, self.options)
        return self
