"""The genuine TextWorld engine, with its slow spots cached.

Everything a player sees (feedback, admissible commands, their order, the goal test) comes from TextWorld's
own PDDL environment, ALFWorld's domain and grammar, and Fast Downward's state. Stock TextWorld spends nearly
all its time on work that cannot change between two calls; that work is done once:

- the PDDL translation of a game (stock: four times per load and reset, two of them for a planner that nobody
  asked), which is made faster (see fast_translation.py) and kept from run to run together with what the
  player reads first (see translations.py),
- the parse of each grammar text and query (stock: at every derivation),
- the copy of the whole context at every symbol (a shallow copy is enough: nothing writes into the nested
  parts),
- the text of a command, whenever its template asks only for facts that no action can change,
- the copy of Fast Downward's library (34 MB) per game: one whose game is over is taken for the next.

`tests/envs/test_alfworld_engine.py` walks stock and this engine side by side.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import weakref
from collections.abc import Mapping
from typing import Any

import fast_downward
import textworld
import textworld.envs.pddl.logic as pddl_logic
import textworld.envs.pddl.textgen as textgen
from textworld.envs.pddl.pddl import PddlEnv
from textworld.generator.game import EntityInfo
from textworld.logic import Rule

from paw_hpc.envs.alfworld import state, translations

TASK_RHS = re.compile(r'("task":\s*\[\s*\{\s*"rhs":\s*)("(?:[^"\\]|\\.)*")')
PREDICATE = re.compile(r"(\w+)\(")


class GameEngine:
    """One ALFWorld game. `reset` and `step` return (feedback, sorted admissible commands, won).

    Args:
        game: mapping with `pddl_domain`, `grammar`, `pddl_problem` (the content of a game.tw-pddl file).
        planner: also prepare Fast Downward's planner, for `plan` (doubles the reset time).
    """

    def __init__(self, game: Mapping[str, Any], planner: bool = False):
        install_caches()
        infos = textworld.EnvInfos(won=True, admissible_commands=True, policy_commands=planner)
        self._env = _CachedPddlEnv(infos, planner)
        self._env.load(game)
        self._state: Any = None

    def reset(self) -> tuple[str, tuple[str, ...], bool]:
        self._state = self._env.reset()
        return self._said()

    def step(self, command: str) -> tuple[str, tuple[str, ...], bool]:
        """Play a command. One that is not admissible changes nothing: the feedback is "Nothing happens."."""
        self._state, _, _ = self._env.step(command)
        return self._said()

    def warm(self) -> None:
        """Parse all that games say and ask for, and have a library at hand: for processes that are forked
        from here."""
        _parse_all(self._env._logic)
        if not state.idle_libraries:
            state.idle_libraries.append(fast_downward.load_lib())

    def share(self) -> None:
        """Build now what the first step needs, because several processes are to be forked from here."""
        self._env._pddl_state.build()

    def plan(self) -> tuple[str, ...]:
        """The planner's commands from here to the goal (needs `planner=True`)."""
        return tuple(self._state["policy_commands"])

    def _said(self) -> tuple[str, tuple[str, ...], bool]:
        return self._state.feedback, tuple(self._state["admissible_commands"]), bool(self._state["won"])


class _CachedPddlEnv(PddlEnv):
    """PddlEnv that translates a problem once and remembers the text of commands."""

    def __init__(self, infos: textworld.EnvInfos, planner: bool):
        textworld.Environment.__init__(self, infos)
        self.downward_lib = state.library()
        weakref.finalize(self, state.idle_libraries.append, self.downward_lib).atexit = False
        self._planner = planner
        self.state: Any = None
        self._texts: dict[str, tuple[Any, str]] = {}
        self._first_texts: Mapping[str, str] = {}
        self._static_templates: dict[str, bool] = {}

    def load(self, game: Mapping[str, Any]) -> None:
        self._game_file, self._game_data, self.walkthrough = None, game, game.get("walkthrough")
        self._logic = _game_logic(game["pddl_domain"], game["grammar"])
        self._key = translations.key_of(game, self._planner)
        kept = translations.read(self._key)
        self._translation = kept or state.translate(game, self._logic, self.downward_lib, self._planner)
        self._changing = set(self._translation.changing)
        self._pddl_state = state.TranslatedState(
            self.downward_lib, game["pddl_problem"], self._logic, self._translation, loaded=kept is None
        )
        self._entity_infos = {}
        for name, type_name, shown in self._translation.variables:
            info = self._entity_infos[name] = EntityInfo(name, type_name)
            info.name, info.definite, info.indefinite = shown, "the", "a"

    def reset(self) -> Any:
        self._pddl_state.rewind()
        translation = self._translation
        if translation.feedback is None:
            # Stock reset builds the PDDL state a second time; ours is as fresh.
            fresh, pddl_logic.PddlState = self._pddl_state, lambda *_: fresh
            try:
                super().reset()
            finally:
                pddl_logic.PddlState = state.STOCK_STATE
            translation.feedback = self.state.feedback
            translation.texts = dict(
                zip(
                    (a.operator for a in self.state["_valid_actions"]),
                    self.state["_valid_commands"],
                    strict=True,
                )
            )
            translations.keep(self._key, translation)
            return self.state
        self.prev_state, self.state, self._last_action, self._moves = None, textworld.GameState(), None, 0
        self.state.feedback = self.state.raw = translation.feedback
        self._first_texts = translation.texts
        self._gather_infos()
        self._first_texts = {}
        return self.state

    def _gather_infos(self) -> None:
        """As stock, but each operator's text is derived once per game where no action can change it."""
        told, pddl = self.state, self._pddl_state
        told["won"], told["lost"] = pddl.check_goal(), False
        told["last_action"], told["_last_action"] = None, self._last_action
        actions = _applicable_actions(pddl, self._texts)
        mapping = {key: info.name for key, info in self._entity_infos.items()}
        told["_valid_actions"], told["_valid_commands"] = (
            actions,
            [self._text(action, mapping) for action in actions],
        )
        told["admissible_commands"] = sorted(set(told["_valid_commands"]))
        if self.request_infos.policy_commands:
            told["policy_commands"] = pddl.replan(self._entity_infos)

    def _text(self, action: Any, names: dict[str, str]) -> str:
        known = self._texts.get(action.operator)
        if known is not None:
            return known[1]
        raw = self._logic.actions[action.name].template
        text = self._first_texts.get(action.operator)
        if text is None:
            context = {
                "state": self._pddl_state,
                "facts": [],
                "variables": {ph.name: self._entity_infos[var.name] for ph, var in action.mapping.items()},
                "mapping": action.mapping,
                "entity_infos": self._entity_infos,
            }
            action.command_template = self._logic.grammar.derive(raw, context)
            text = action.format_command(names)
        if raw not in self._static_templates:
            self._static_templates[raw] = "#" not in raw and not set(PREDICATE.findall(raw)) & self._changing
        if self._static_templates[raw]:
            self._texts[action.operator] = (action, text)
        return text


def _applicable_actions(pddl: Any, known: Mapping[str, tuple[Any, str]]) -> list[Any]:
    """PddlState.all_applicable_actions, reusing the actions whose text is already known (operator ids never
    change within a game)."""
    operators = (fast_downward.Operator * pddl.downward_lib.get_applicable_operators_count())()
    pddl.downward_lib.get_applicable_operators(operators)
    pddl._operators = {op.id: op for op in operators}
    actions: dict[str, Any] = {}
    for operator in operators:
        name = operator.name
        if name in actions:
            continue
        if name in known:
            actions[name] = known[name][0]
            continue
        verb, *words = name.split()
        arguments = state.named(words, pddl.names)
        action = textworld.logic.Action(name=verb, preconditions=[], postconditions=[])
        action.id, action.operator = operator.id, name
        action.mapping = {
            textworld.logic.Placeholder(p.name.strip("?"), p.type_name): textworld.logic.Variable(
                value, p.type_name
            )
            for p, value in zip(pddl._actions[verb].parameters, arguments, strict=False)
        }
        action.feedback_rule = pddl._logic.actions[verb].feedback_rule
        actions[name] = action
    return list(actions.values())


@functools.lru_cache(maxsize=8)
def _parsed_logic(domain: str, grammar: str) -> Any:
    return pddl_logic.GameLogic(domain=domain, grammar=grammar)


def _game_logic(domain: str, grammar: str) -> Any:
    """A GameLogic of this grammar. All ALFWorld games share one grammar but for the sentence that states the
    task: parse the rest once."""
    match = TASK_RHS.search(grammar)
    if match is None:
        return _parsed_logic(domain, grammar)
    shared = _parsed_logic(domain, grammar[: match.start(2)] + '"TASK"' + grammar[match.end(2) :])
    logic = copy.copy(shared)
    logic.grammar = textgen.ContextSensitiveGrammar()
    logic.grammar._rules.update(shared.grammar._rules)
    sentence = textgen._parse_and_convert(json.loads(match.group(2)), rule_name="symbols")
    logic.grammar._rules["task"] = [textgen.ProductionRule(lhs="task", rhs=sentence, condition="")]
    logic.types = textworld.logic.TypeHierarchy()
    return logic


def _parse_all(logic: Any) -> None:
    """Fill the caches of `install_caches` with every text and query of a grammar."""
    symbols = [symbol for rules in logic.grammar._rules.values() for rule in rules for symbol in rule.rhs]
    queries = {rule.condition for rules in logic.grammar._rules.values() for rule in rules}
    for action in logic.actions.values():
        for text in (action.template, action.feedback_rule):
            symbols += textgen._parse_and_convert(text, rule_name="symbols")
    while symbols:
        symbol = symbols.pop()
        queries.add(getattr(symbol, "given", None))
        symbols += [
            nested
            for nested in (getattr(symbol, "symbol", None), getattr(symbol, "expression", None))
            if isinstance(nested, textgen.Symbol)
        ]
    for query in queries - {None, ""}:
        textgen.Rule.parse_conjunctive_query(query)


def _clone(symbol: Any) -> Any:
    """A symbol of the same kind whose nested symbols are its own (what stock gets from deepcopy, less the
    context)."""
    twin = copy.copy(symbol)
    twin.context = {}
    for name in ("symbol", "expression"):
        nested = getattr(twin, name, None)
        if isinstance(nested, textgen.Symbol):
            setattr(twin, name, _clone(nested))
    return twin


def _shallow_context(context: Mapping[str, Any]) -> dict[str, Any]:
    if not context:
        return {}
    return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}


def _copy_symbol(self: Any, context: Mapping[str, Any]) -> Any:
    twin = _clone(self)
    twin.context = _shallow_context(context)
    return twin


_compiled = functools.lru_cache(maxsize=None)(functools.partial(compile, filename="<grammar>", mode="eval"))


def _evaluate(self: Any, context: Any = None) -> list[Any]:
    context = context or self.context
    return [textgen.TerminalSymbol(eval(_compiled(self.expression.strip()), {}, context["variables"]))]


def _replace(self: Any, start: Any) -> list[Any]:
    """ContextSensitiveGrammar.replace with the first applicable rule, without the deep copy."""
    rules = self._rules.get(str(start))
    if not rules:
        raise textgen.CSGUnknownSymbolError(start)
    for rule in rules:
        if not rule.condition or _holds(rule.condition, start.context):
            return [_copy_symbol(symbol, start.context) for symbol in rule.rhs]
    raise IndexError(f"no rule of #{start}# applies")


def _holds(condition: str, context: Mapping[str, Any]) -> bool:
    assignments = context["state"].all_assignments(
        textgen.Rule.parse_conjunctive_query(condition), context["mapping"]
    )
    return next(iter(assignments), None) is not None


@functools.cache
def install_caches() -> None:
    """Put the caches into TextWorld's text generator (once per process)."""
    parse = textgen._parse_and_convert
    parsed = functools.lru_cache(maxsize=None)(lambda text, rule_name: parse(text, rule_name=rule_name))
    textgen._parse_and_convert = lambda text, rule_name="symbols", trace=False: [
        _clone(s) for s in parsed(text, rule_name)
    ]
    textgen.Rule = type(
        "CachedRule",
        (),
        {
            "parse_conjunctive_query": staticmethod(
                functools.lru_cache(maxsize=None)(Rule.parse_conjunctive_query)
            )
        },
    )
    textgen.copy_context = _shallow_context
    textgen.Symbol.copy = _copy_symbol
    textgen.EvalSymbol.derive = _evaluate
    textgen.ContextSensitiveGrammar.replace = _replace
