"""A planning task in Fast Downward's own format (SAS), the same text as its translator writes, in a fraction
of the time.

Fast Downward's `translate` reads and normalizes the PDDL here, too, and translates what is rare: axioms,
goals and actions with conditional effects. What takes its time is done otherwise: which actions and facts
can be reached (`reachability`), and everything that goes over thousands of operators. That is possible
because TextWorld asks for a simple encoding, where each fact is a variable of its own and nothing is
filtered, and because the translator sorts: its text follows from sets alone. `benchmarks/translation.py`
compares texts.

A task that uses more of PDDL than ALFWorld's do is left to Fast Downward.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paw_hpc.envs.alfworld.reachability import Fact, Grounding, Rule, Unsupported, picker, reach
from paw_hpc.envs.alfworld.variable_order import variable_order

TRUE, FALSE = 0, 1
"""A variable's values: the fact holds, or not."""
Pair = tuple[int, int]
"""(variable, value)"""


@dataclass
class _Operator:
    action: str
    objects: tuple[str, ...]
    prevail: list[Pair]
    pre_post: list[tuple[int, int, int, list[Pair]]]
    """(variable, value before or -1, value after, conditions)"""
    cost: int

    def name(self, written: Mapping[str, str] | None = None) -> str:
        """As Fast Downward's translator writes and sorts it, with other words for objects where `written` has
        them."""
        objects = self.objects if written is None else map(written.__getitem__, self.objects)
        return f"{self.action} {' '.join(objects)}"


def translated(domain: str, problem: str, numbered: bool = False) -> tuple[Any, str] | None:
    """Fast Downward's task, parsed and normalized, and its text in SAS, as
    `fast_downward.pddl2sas(domain, problem)` gives them. None: the task needs what this module does not know.

    Args:
        numbered: objects stand in the text by their numbers (see `numbers`). ALFWorld's names are two thirds
            of a text, and half of the memory that Fast Downward takes for it.
    """
    arguments, sys.argv = sys.argv, ["translate.py", "domain", "task"]  # its options read them when imported
    try:
        from fast_downward.translate import normalize, options
        from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions
    finally:
        sys.argv = arguments
    options.use_partial_encoding = False  # TextWorld's choice, as the parts below read it
    options.add_implied_preconditions = False
    with contextlib.redirect_stdout(io.StringIO()):
        parsed = [lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem)]
        task = parsing_functions.parse_task(*parsed)
        normalize.normalize(task)
        try:
            return task, _Translator(task).text(numbers(task) if numbered else None)
        except Unsupported:
            return None


def numbers(task: Any) -> dict[str, str]:
    """Name of each object -> its place among the task's objects."""
    return {name: str(place) for place, name in enumerate(dict.fromkeys(o.name for o in task.objects))}


class _Translator:
    """Raises Unsupported."""

    def __init__(self, task: Any):
        from fast_downward.translate import pddl
        from fast_downward.translate.instantiate import get_objects_by_type

        self._task, self._pddl = task, pddl
        self._objects: Mapping[str, list[str]] = get_objects_by_type(task.objects, task.types)
        self._start: set[Fact] = {(a.predicate, *a.args) for a in task.init if isinstance(a, pddl.Atom)}
        self._rules = {id(owner): self._rule(owner) for owner in [*task.actions, *task.axioms]}
        extra = [rule for action in task.actions for rule in self._conditional(action)]
        fluent = {effect.literal.predicate for action in task.actions for effect in action.effects}
        fluent |= {axiom.name for axiom in task.axioms}
        reached = reach([*self._rules.values(), *extra], self._start)
        facts = sorted((fact for fact in reached if fact[0] in fluent), key=lambda fact: (fact[0], fact[1:]))
        self._variables = {fact: number for number, fact in enumerate(facts)}

    # ------------------------------------------------------------------------------------------------ rules

    def _rule(self, owner: Any) -> Rule:
        """Of an action: its unconditional effects follow; of an axiom: its head."""
        slots = _slots(owner)
        if isinstance(owner, self._pddl.Action):
            body = _literals(owner.precondition)
            effects = [e for e in owner.effects if not _positive(e.condition)]
            heads = [_slotted(e.literal, slots) for e in effects if not e.literal.negated]
            if any(effect.parameters for effect in owner.effects):
                raise Unsupported("an effect on all objects")
        else:
            body = _literals(owner.condition)
            heads = [
                (owner.name, *(slots[p.name] for p in owner.parameters[: owner.num_external_parameters]))
            ]
        return Rule(
            domains=[self._objects.get(parameter.type_name, []) for parameter in owner.parameters],
            body=[_slotted(literal, slots) for literal in body if not literal.negated],
            heads=heads,
        )

    def _conditional(self, action: Any) -> Iterable[Rule]:
        for effect in action.effects:
            if _positive(effect.condition) and not effect.literal.negated:
                slots, whole = _slots(action), self._rule(action)
                body = [_slotted(literal, slots) for literal in _positive(effect.condition)]
                head = _slotted(effect.literal, slots)
                yield replace(whole, body=whole.body + body, heads=[head], found=set())

    # -------------------------------------------------------------------------------------------- operators

    def _operators(self) -> list[_Operator]:
        found: list[_Operator] = []
        for action in self._task.actions:
            if all(isinstance(effect.condition, self._pddl.Truth) for effect in action.effects):
                found += self._plain(action)
            else:
                found += self._by_fast_downward(action)
        return sorted(found, key=lambda op: (op.name(), op.prevail, op.pre_post))

    def _plain(self, action: Any) -> Iterable[_Operator]:
        """Operators of an action whose effects have no conditions."""
        slots = _slots(action)
        # Negated literals last: they may contradict others, and others do not contradict each other.
        wanted = sorted(_literals(action.precondition), key=lambda literal: literal.negated)
        conditions = [(one.negated, picker(_slotted(one, slots), len(slots))) for one in wanted]
        effects = [
            (e.literal.negated, picker(_slotted(e.literal, slots), len(slots))) for e in action.effects
        ]
        cost = self._cost(action)
        for grounding in self._rules[id(action)].found:
            before = self._before(conditions, grounding)
            if before is None:
                continue
            after: dict[int, int] = {}
            for negated, fact_of in effects:
                variable = self._variables.get(fact_of(grounding))
                if variable is not None:
                    if negated:
                        after.setdefault(variable, FALSE)
                    else:
                        after[variable] = TRUE  # what is deleted and added is added
            pre_post: list[tuple[int, int, int, list[Pair]]] = [
                (variable, before.get(variable, -1), value, [])
                for variable, value in sorted(after.items())
                if before.get(variable, -1) != value
            ]
            if not pre_post:
                continue
            changed = {variable for variable, *_ in pre_post}
            prevail = sorted((v, value) for v, value in before.items() if v not in changed)
            objects = grounding[: action.num_external_parameters]
            yield _Operator(action.name, objects, prevail, pre_post, cost)

    def _before(
        self, conditions: Sequence[tuple[bool, Callable[[Grounding], Fact]]], grounding: Grounding
    ) -> dict[int, int] | None:
        """What must hold, of what can change; None: it cannot."""
        before: dict[int, int] = {}
        for negated, fact_of in conditions:
            fact = fact_of(grounding)
            variable = self._variables.get(fact)
            if variable is None:
                if (fact in self._start) == negated:
                    return None
            elif before.setdefault(variable, value := FALSE if negated else TRUE) != value:
                return None
        return before

    def _cost(self, action: Any) -> int:
        if not self._task.use_min_cost_metric:
            return 1
        if action.cost is None:
            return 0
        try:
            return int(action.cost.expression.value)
        except AttributeError:
            raise Unsupported("a cost that depends on objects") from None

    @functools.cached_property
    def _for_fast_downward(self) -> tuple[set[Any], dict[Any, list[Pair]], list[int]]:
        """As its own functions want them: what holds at the start, the variable of each fact, and how many
        values each has."""
        atom = self._pddl.Atom
        start = {atom(fact[0], fact[1:]) for fact in self._start}
        fluent = {atom(fact[0], fact[1:]): [(number, TRUE)] for fact, number in self._variables.items()}
        return start, fluent, [2] * len(self._variables)

    def _by_fast_downward(self, action: Any) -> Iterable[_Operator]:
        from fast_downward.translate import translate

        start, fluent, ranges = self._for_fast_downward
        cost = self._cost(action)
        for grounding in self._rules[id(action)].found:
            names = {p.name: name for p, name in zip(action.parameters, grounding, strict=True)}
            made = action.instantiate(names, start, {}, fluent, self._objects, False)
            if made is None:
                continue
            for found in translate.translate_strips_operator(made, fluent, ranges, fluent, ranges, {}):
                objects = grounding[: action.num_external_parameters]
                yield _Operator(action.name, objects, found.prevail, found.pre_post, cost)

    # --------------------------------------------------------------------------------------- axioms and goal

    def _derived(self) -> tuple[list[Any], dict[int, int], list[Pair]]:
        """Axioms (Fast Downward's, sorted), the layers of what they derive, and the goal."""
        from fast_downward.translate import axiom_rules, options, translate

        task, pddl = self._task, self._pddl
        names = {axiom.name for axiom in task.axioms}
        for action in task.actions:
            conditions = [action.precondition, *(effect.condition for effect in action.effects)]
            if any(literal.predicate in names for one in conditions for literal in _literals(one)):
                raise Unsupported("an action with a derived precondition")
        start, fluent, ranges = self._for_fast_downward
        made = []
        for axiom in task.axioms:
            for grounding in self._rules[id(axiom)].found:
                names_of = {p.name: name for p, name in zip(axiom.parameters, grounding, strict=True)}
                made.append(axiom.instantiate(names_of, start, fluent))
        goal = list(task.goal.parts) if isinstance(task.goal, pddl.Conjunction) else [task.goal]
        if not all(isinstance(literal, pddl.Literal) and not literal.negated for literal in goal):
            raise Unsupported("a goal that is no conjunction of facts")
        if not all(literal in fluent or literal in start for literal in goal):
            raise Unsupported("a goal that cannot be reached")
        needed = sorted(axiom for axiom in made if axiom is not None)
        axioms, layers = axiom_rules.handle_axioms([], needed, goal, options.layer_strategy)
        translated = translate.translate_strips_axioms(axioms, fluent, ranges, fluent, ranges)
        pairs = sorted({fluent[literal][0] for literal in goal if literal in fluent})
        if not pairs:
            raise Unsupported("a goal that always holds")
        ordered = sorted(translated, key=lambda axiom: (axiom.condition, axiom.effect))
        return ordered, {fluent[atom][0][0]: layer for atom, layer in layers.items()}, pairs

    # ------------------------------------------------------------------------------------------------- text

    def text(self, written: Mapping[str, str] | None) -> str:
        """SAS, with other words for objects where `written` has them."""
        operators = self._operators()
        axioms, layers, goal = self._derived()
        order = variable_order(len(self._variables), operators, axioms, dict(goal))
        new = {old: number for number, old in enumerate(order)}
        facts = list(self._variables)
        lines = ["begin_version", "3", "end_version", "begin_metric"]
        lines += [str(int(self._task.use_min_cost_metric)), "end_metric", str(len(order))]
        for number, old in enumerate(order):
            predicate, *names = facts[old]
            said = f"{predicate}({', '.join(names if written is None else map(written.__getitem__, names))})"
            lines += ["begin_variable", f"var{number}", str(layers.get(old, -1)), "2"]
            lines += [f"Atom {said}", f"NegatedAtom {said}", "end_variable"]
        lines += ["0", "begin_state"]  # no groups of facts that exclude each other
        lines += [str(TRUE if facts[old] in self._start else FALSE) for old in order]
        lines += ["end_state", "begin_goal", str(len(goal))]
        lines += [f"{v} {value}" for v, value in sorted((new[v], value) for v, value in goal)]
        lines += ["end_goal", str(len(operators))]
        for operator in operators:
            lines += ["begin_operator", operator.name(written), str(len(operator.prevail))]
            lines += [f"{new[v]} {value}" for v, value in operator.prevail]
            lines.append(str(len(operator.pre_post)))
            for variable, before, after, conditions in operator.pre_post:
                when = "".join(f"{new[v]} {value} " for v, value in conditions)
                lines.append(f"{len(conditions)} {when}{new[variable]} {before} {after}")
            lines += [str(operator.cost), "end_operator"]
        lines.append(str(len(axioms)))
        for axiom in axioms:
            lines += ["begin_rule", str(len(axiom.condition))]
            lines += [f"{new[v]} {value}" for v, value in axiom.condition]
            variable, value = axiom.effect
            lines += [f"{new[variable]} {1 - value} {value}", "end_rule"]
        return "\n".join(lines) + "\n"


def _literals(condition: Any) -> list[Any]:
    """Of a conjunction, one literal, or nothing."""
    from fast_downward.translate import pddl

    if isinstance(condition, pddl.Truth):
        return []
    parts = condition.parts if isinstance(condition, pddl.Conjunction) else [condition]
    if not all(isinstance(part, pddl.Literal) for part in parts):
        raise Unsupported(f"a condition of {type(condition).__name__}")
    return list(parts)


def _positive(condition: Any) -> list[Any]:
    return [literal for literal in _literals(condition) if not literal.negated]


def _slots(owner: Any) -> dict[str, int]:
    """Numbers of an action's or axiom's parameters."""
    return {parameter.name: number for number, parameter in enumerate(owner.parameters)}


def _slotted(literal: Any, slots: Mapping[str, int]) -> tuple[Any, ...]:
    return (literal.predicate, *(slots.get(argument, argument) for argument in literal.args))
