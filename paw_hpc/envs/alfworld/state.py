"""A game's PDDL state, made from a translation, and the translation, made by stock TextWorld of what Fast
Downward's translator says (see fast_translation.py)."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import fast_downward
import textworld
import textworld.envs.pddl.logic as pddl_logic
from alfworld.agents.utils.misc import Demangler

from paw_hpc.envs.alfworld import fast_translation
from paw_hpc.envs.alfworld.translations import Translation

STOCK_STATE = pddl_logic.PddlState
idle_libraries: list[Any] = []
"""Copies of Fast Downward whose game is over; processes that are forked from here inherit them."""


class TranslatedState(pddl_logic.PddlState):
    """A PddlState made from a translation; at the start after `rewind`. Its facts are built when they are
    first asked for.

    Args:
        loaded: the library has just translated the game and holds its start.
    """

    FACTS = ("_facts", "_vars_by_name", "_vars_by_type", "_var_counts")

    def __init__(
        self, downward_lib: Any, pddl_problem: str, logic: Any, translation: Translation, loaded: bool
    ):
        self.downward_lib, self.pddl_problem, self._logic, self._translation = (
            downward_lib,
            pddl_problem,
            logic,
            translation,
        )
        self._loaded, self.name2type = loaded, translation.objects
        self.names = tuple(translation.objects) if translation.numbered else None
        """Of the objects, where the library knows them by their numbers."""
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
        if not self._loaded:
            self.downward_lib.load_sas(self._translation.sas)
            # Without a planner, the translation "for replanning" is only loaded, never used: the plain one
            # will do.
            self.downward_lib.load_sas_replan(self._translation.replan)
        self._loaded = False
        for name in self.FACTS:
            self.__dict__.pop(name, None)

    def apply(self, action: Any) -> None:
        """As stock, for objects that the library may know by numbers."""
        operator = self._operators[action.id]
        atoms = (fast_downward.Atom * operator.nb_effect_atoms)()
        self.downward_lib.apply_operator(operator.id, atoms)
        for atom in atoms:
            holds, predicate, objects = read_atom(atom.name, self.names)
            arguments = [textworld.logic.Variable(name, self.name2type[name]) for name in objects]
            fact = textworld.logic.Proposition(predicate, arguments)
            came, went = (fact, fact.negate()) if holds else (fact.negate(), fact)
            self.remove_fact(went)
            self.add_fact(came)

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
    """What stock TextWorld would make of a game, whose start the library then holds; what the player reads
    first is left open."""
    collecting = gc.isenabled()
    gc.disable()  # a third of the time went into looking for garbage, and there is none
    try:
        texts = logic.domain, game["pddl_problem"]
        # The planner takes the state over by the names of facts, so those of both texts must agree.
        made = fast_translation.translated(*texts, numbered=not planner)
        task, sas = made or fast_downward.pddl2sas(*texts)
        replan = fast_downward.pddl2sas(*texts, optimize=True)[1] if planner else sas
        downward_lib.load_sas(sas.encode())
        downward_lib.load_sas_replan(replan.encode())
        objects = {thing.name: thing.type_name for thing in task.objects}
        numbered = made is not None and not planner
        facts = _facts(task, downward_lib, tuple(objects) if numbered else None)
    finally:
        if collecting:
            gc.enable()
    place = {name: number for number, name in enumerate(dict.fromkeys(n for f in facts for n in f[1:]))}
    demangler = Demangler(game_infos={name: SimpleNamespace(id=name) for name in place}, shuffle=False)
    return Translation(
        sas=sas.encode(),
        replan=replan.encode(),
        numbered=numbered,
        types=[(type_.name, list(type_.supertype_names)) for type_ in task.types],
        objects=objects,
        actions={action.name: [(p.name, p.type_name) for p in action.parameters] for action in task.actions},
        changing=sorted(
            {effect.literal.predicate.lower() for action in task.actions for effect in action.effects}
        ),
        variables=[(name, objects[name], demangler.demangle_alfred_name(name)) for name in place],
        facts=[[predicate, *(place[name] for name in names)] for predicate, *names in facts],
    )


def _facts(task: Any, downward_lib: Any, names: Sequence[str] | None) -> list[tuple[str, ...]]:
    """(predicate, objects ...) of the start, each once: those that the problem states, and those that Fast
    Downward's state holds. As stock, without equalities and whole numbers.

    Args:
        names: of the objects, where the library knows them by their numbers.
    """
    found: dict[tuple[str, ...], None] = {}
    for stated in task.init:
        if hasattr(stated, "predicate"):
            if stated.predicate != "=":
                found[stated.predicate, *stated.args] = None
        elif stated.fluent.symbol != "total-cost" and not str(stated.expression.value).isdigit():
            found[str(stated.expression.value), *stated.fluent.args] = None
    atoms = (fast_downward.Atom * downward_lib.get_state_size())()
    downward_lib.get_state(atoms)
    for atom in atoms:
        holds, predicate, objects = read_atom(atom.name, names)
        if holds:
            found[predicate, *objects] = None
    return list(found)


def read_atom(said: str, names: Sequence[str] | None) -> tuple[bool, str, list[str]]:
    """(whether it holds, predicate, objects) of `Atom opened(a)` or `NegatedAtom opened(a)`."""
    kind, _, fact = said.partition(" ")
    predicate, _, listed = fact[:-1].partition("(")
    return kind == "Atom", predicate, named([word for word in listed.split(", ") if word], names)


def named(words: list[str], names: Sequence[str] | None) -> list[str]:
    """Objects by their names."""
    return words if names is None else [names[int(word)] for word in words]


def library() -> Any:
    return idle_libraries.pop() if idle_libraries else fast_downward.load_lib()
