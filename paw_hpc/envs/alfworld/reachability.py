"""Which actions of a planning task can ever be reached, and which facts, when nothing is ever undone: a
fixed point over rules (delete relaxation, as in Fast Downward's `instantiate.explore`).

Each fact meets each rule once, with indices of what it has to fit, so the cost is that of the result. Fast
Downward's own way goes through a general Datalog program with helper predicates, and is most of its
translation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

Fact = tuple[str, ...]
"""(predicate, arguments ...)"""
Grounding = tuple[str, ...]
"""An object for each parameter of a rule."""


class Unsupported(Exception):
    """A task that is written in ways that this module does not know."""


@dataclass
class Rule:
    """Where all of `body` holds, `heads` do.

    `body` and `heads` are (predicate, slots ...): a slot is a parameter's number, or the name of an object.
    """

    domains: list[Sequence[str]]
    """Objects that each parameter may be."""
    body: list[tuple[Any, ...]]
    heads: list[tuple[Any, ...]]
    found: set[Grounding] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.allowed = [frozenset(domain) for domain in self.domains]
        self.names = sorted({slot for literal in self.body for slot in literal[1:] if isinstance(slot, str)})
        """Objects that the body names."""
        self.makes = [picker(head, len(self.domains)) for head in self.heads]

    def unbound(self) -> list[Any]:
        """No parameter bound; the objects that the body names lie behind the parameters."""
        return [None] * len(self.domains) + self.names


def picker(literal: Sequence[Any], parameters: int) -> Callable[[Grounding], Fact]:
    """What makes a literal's fact of a grounding."""
    words = [part for part in literal if isinstance(part, str)]
    place = {word: parameters + number for number, word in enumerate(words)}
    tail = tuple(words)
    if len(literal) == 1:
        return lambda grounding: tail
    get = itemgetter(*[part if isinstance(part, int) else place[part] for part in literal])
    return lambda grounding: get(grounding + tail)


@dataclass
class _Step:
    """Binds parameters with the facts that fit those that are bound."""

    index: dict[Any, list[Any]]
    key: Callable[[list[Any]], Any]
    """Of a binding."""
    binds: list[tuple[int, int]]
    """(position in the fact, slot)"""


def reach(rules: Sequence[Rule], facts: Iterable[Fact]) -> set[Fact]:
    """All facts that can be reached; each rule's `found` then has its groundings.

    Raises:
        Unsupported: a literal that names a parameter twice.
    """
    search = _Search(rules)
    for fact in facts:
        search.learn(fact)
    for rule, plan in search.unconditional:
        search.meet(rule, plan, 0, rule.unbound())
    while search.waiting:
        fact = search.waiting.popleft()
        search.add(fact)
        for rule, plan, constants, binds in search.triggers.get(fact[0], ()):
            if all(fact[position] == name for position, name in constants):
                binding = rule.unbound()
                for position, slot in binds:
                    binding[slot] = fact[position]
                search.meet(rule, plan, 0, binding)
    return search.known


class _Search:
    def __init__(self, rules: Sequence[Rule]):
        self.fluent = {head[0] for rule in rules for head in rule.heads}
        self.known = set[Fact]()
        self.waiting = deque[Fact]()
        """Known facts that can come and that no rule has met; the others can be found at once."""
        self._indices: dict[tuple[str, tuple[int, ...]], dict[Any, list[Fact]]] = {}
        self._of_predicate: dict[str, list[tuple[Callable[[Any], Any], dict[Any, list[Fact]]]]] = defaultdict(
            list
        )
        self.triggers: dict[str, list[Any]] = defaultdict(list)
        self.unconditional = [
            (rule, self.plan(rule, None))
            for rule in rules
            if not any(literal[0] in self.fluent for literal in rule.body)
        ]
        for rule in rules:
            for number, literal in enumerate(rule.body):
                slots = [slot for slot in literal[1:] if isinstance(slot, int)]
                if len(slots) != len(set(slots)):
                    raise Unsupported(f"{literal[0]} names a parameter twice")
                if literal[0] in self.fluent:
                    constants = [(i, s) for i, s in enumerate(literal) if i and isinstance(s, str)]
                    binds = [(i, s) for i, s in enumerate(literal) if isinstance(s, int)]
                    self.triggers[literal[0]].append((rule, self.plan(rule, number), constants, binds))

    def learn(self, fact: Fact) -> None:
        if fact not in self.known:
            self.known.add(fact)
            if fact[0] in self.fluent:
                self.waiting.append(fact)
            else:
                self.add(fact)

    def add(self, fact: Fact) -> None:
        """Let rules find it."""
        for key, index in self._of_predicate[fact[0]]:
            index[key(fact)].append(fact)

    def plan(self, rule: Rule, first: int | None) -> list[_Step]:
        """In which order the rest of a body is matched, after its literal `first`: always the one of which
        most is bound, and facts that never change before others."""
        place = {name: len(rule.domains) + i for i, name in enumerate(rule.names)}
        bound = set(place.values())
        left = [[place.get(slot, slot) for slot in literal] for literal in rule.body]
        for literal, original in zip(left, rule.body, strict=True):
            literal[0] = original[0]
        if first is not None:
            bound |= set(left.pop(first)[1:])
        steps = []
        while left:
            literal = max(left, key=lambda one: (_share(one[1:], bound), one[0] not in self.fluent))
            left.remove(literal)
            positions = tuple(i for i, slot in enumerate(literal) if i and slot in bound)
            binds = [(i, slot) for i, slot in enumerate(literal) if i and slot not in bound]
            steps.append(
                _Step(self._index(literal[0], positions), _key([literal[p] for p in positions]), binds)
            )
            bound |= set(literal[1:])
        for slot, objects in enumerate(rule.domains):
            if slot not in bound:
                steps.append(_Step({(): [(name,) for name in objects]}, _key(()), [(0, slot)]))
        return steps

    def meet(self, rule: Rule, plan: Sequence[_Step], done: int, binding: list[Any]) -> None:
        """All groundings of a rule that go on from a binding, which `done` steps of the plan have made; what
        they lead to is known, and waits."""
        if done == len(plan):
            self._ground(rule, binding)
            return
        step = plan[done]
        for fact in step.index.get(step.key(binding), ()):
            for position, slot in step.binds:
                binding[slot] = fact[position]
            self.meet(rule, plan, done + 1, binding)

    def _ground(self, rule: Rule, binding: list[Any]) -> None:
        grounding = tuple(binding[: len(rule.domains)])
        if grounding in rule.found:
            return
        if not all(name in allowed for name, allowed in zip(grounding, rule.allowed, strict=True)):
            return
        rule.found.add(grounding)
        for make in rule.makes:
            self.learn(make(grounding))

    def _index(self, predicate: str, positions: tuple[int, ...]) -> dict[Any, list[Fact]]:
        if (predicate, positions) not in self._indices:
            index: dict[Any, list[Fact]] = defaultdict(list)
            self._indices[predicate, positions] = index
            self._of_predicate[predicate].append((_key(positions), index))
        return self._indices[predicate, positions]


def _share(slots: Sequence[int], bound: set[int]) -> float:
    return sum(slot in bound for slot in slots) / len(slots) if slots else 1.0


def _key(places: Sequence[int]) -> Callable[[Any], Any]:
    return itemgetter(*places) if places else lambda _: ()
