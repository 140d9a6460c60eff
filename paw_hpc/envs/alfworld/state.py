"""A game's PDDL state, made from a translation, and the translation, made by stock TextWorld of what Fast
Downward's translator says (see fast_translation.py)."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import fast_downward
import textworld
import textworld.envs.pddl.logic as pddl_logic
from alfworld.agents.utils.misc import Demangler

from paw_hpc.envs.alfworld import fast_translation
from paw_hpc.envs.alfworld.translations import Translation

STOCK_STATE = pddl_logic.PddlState
STOCK_PDDL2SAS = fast_downward.pddl2sas
idle_libraries: list[Any] = []
"""Copies of Fast Downward whose game is over; processes that are forked from here inherit them."""


class TranslatedState(pddl_logic.PddlState):
    """A PddlState made from a translation; at the start after `rewind`. Its facts are built when they are
    first asked for."""

    FACTS = ("_facts", "_vars_by_name", "_vars_by_type", "_var_counts")

    def __init__(self, downward_lib: Any, pddl_problem: str, logic: Any, translation: Translation):
        self.downward_lib, self.pddl_problem, self._logic, self._translation = (
            downward_lib,
            pddl_problem,
            logic,
            translation,
        )
        self.name2type = translation.objects
        self._actions = {
            verb: SimpleNamespace(
                name=verb,
                parameters=[
                    SimpleNamespace(name=name, type_name=type_name) for name, type_name in parameters
                ],
            )
            for verb, parameters in translation.actions.items()
        }
        for name, above in translation.types:
            with contextlib.suppress(ValueError):  # as stock: a type that is known already
                logic.types.add(textworld.logic.Type(name, above))

    def rewind(self) -> None:
        self.downward_lib.load_sas(self._translation.sas)
        # Without a planner, the translation "for replanning" is only loaded, never used: the plain one will
        # do.
        self.downward_lib.load_sas_replan(self._translation.replan)
        for name in self.FACTS:
            self.__dict__.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        if name not in self.FACTS:
            raise AttributeError(name)
        self.build()
        return self.__dict__[name]

    def build(self) -> None:
        """The facts of the start, once."""
        if "_facts" in self.__dict__:
            return
        self._facts: Any = defaultdict(set)
        self._vars_by_name: dict[str, Any] = {}
        self._vars_by_type: Any = defaultdict(set)
        self._var_counts: Any = Counter()
        variables = [
            textworld.logic.Variable(id_, type_name) for id_, type_name, _ in self._translation.variables
        ]
        for predicate, *arguments in self._translation.facts:
            self.add_fact(textworld.logic.Proposition(predicate, [variables[i] for i in arguments]))


def translate(game: Mapping[str, Any], logic: Any, downward_lib: Any, planner: bool) -> Translation:
    """By stock TextWorld; what the player reads first is left open."""

    made: list[tuple[Any, str]] = []

    def once(domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> tuple[Any, str]:
        if not made:
            made.append(fast_translation.translated(domain, problem) or STOCK_PDDL2SAS(domain, problem))
        elif optimize and planner:
            made.append(STOCK_PDDL2SAS(domain, problem, optimize=True))
        return made[-1]

    collecting = gc.isenabled()
    gc.disable()  # a third of the time went into looking for garbage, and there is none
    original, fast_downward.pddl2sas = fast_downward.pddl2sas, once
    try:
        state = STOCK_STATE(downward_lib, game["pddl_problem"], logic)
    finally:
        fast_downward.pddl2sas = original
        if collecting:
            gc.enable()
    found = {variable.name: variable for fact in state.facts for variable in fact.arguments}
    demangler = Demangler(game_infos={name: SimpleNamespace(id=name) for name in found}, shuffle=False)
    place = {name: number for number, name in enumerate(found)}
    return Translation(
        sas=state.sas.encode(),
        replan=state.sas_replan.encode(),
        types=[(type_.name, list(type_.supertype_names)) for type_ in state.task.types],
        objects=dict(state.name2type),
        actions={
            action.name: [(p.name, p.type_name) for p in action.parameters] for action in state.task.actions
        },
        changing=sorted(
            {effect.literal.predicate.lower() for action in state.task.actions for effect in action.effects}
        ),
        variables=[
            (name, variable.type, demangler.demangle_alfred_name(name)) for name, variable in found.items()
        ],
        facts=[[fact.name, *(place[variable.name] for variable in fact.arguments)] for fact in state.facts],
    )


def library() -> Any:
    return idle_libraries.pop() if idle_libraries else fast_downward.load_lib()
