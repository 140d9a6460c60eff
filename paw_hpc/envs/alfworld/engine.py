"""The genuine TextWorld engine, with its slow spots cached.

Everything a player sees (feedback, admissible commands, their order, the goal test) comes from TextWorld's own PDDL environment, ALFWorld's domain
and grammar, and Fast Downward's state. Stock TextWorld spends nearly all its time on work that cannot change between two calls; that work is done
once:

- the PDDL translation of a game (stock: four times per load and reset, two of them for a planner that nobody asked), which is kept from run to run
  together with what the player reads first (see translations.py),
- the parse of each grammar text and query (stock: at every derivation),
- the copy of the whole context at every symbol (a shallow copy is enough: nothing writes into the nested parts),
- the text of a command, whenever its template asks only for facts that no action can change,
- the copy of Fast Downward's library (34 MB) per game: one whose game is over is taken for the next.

`tests/envs/test_alfworld_engine.py` walks stock and this engine side by side.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import json
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import fast_downward
import textworld
import textworld.envs.pddl.logic as pddl_logic
import textworld.envs.pddl.textgen as textgen
from alfworld.agents.utils.misc import Demangler
from textworld.envs.pddl.pddl import PddlEnv
from textworld.generator.game import EntityInfo
from textworld.logic import Rule

from paw_hpc.envs.alfworld import translations
from paw_hpc.envs.alfworld.translations import Translation

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
        self.downward_lib = _library()
        weakref.finalize(self, _idle_libraries.append, self.downward_lib).atexit = False
        self._planner = planner
        self.state: Any = None
        self._texts: dict[str, tuple[Any, str]] = {}
        self._first_texts: Mapping[str, str] = {}
        self._static_templates: dict[str, bool] = {}

    def load(self, game: Mapping[str, Any]) -> None:
        self._game_file, self._game_data, self.walkthrough = None, game, game.get("walkthrough")
        self._logic = _game_logic(game["pddl_domain"], game["grammar"])
        self._key = translations.key_of(game, self._planner)
        self._translation = translations.read(self._key) or _translate(game, self._logic, self.downward_lib, self._planner)
        self._changing = set(self._translation.changing)
        self._pddl_state = TranslatedState(self.downward_lib, game["pddl_problem"], self._logic, self._translation)
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
                pddl_logic.PddlState = _STOCK_STATE
            translation.feedback = self.state.feedback
            translation.texts = dict(zip((a.operator for a in self.state["_valid_actions"]), self.state["_valid_commands"], strict=True))
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
        state, pddl = self.state, self._pddl_state
        state["won"], state["lost"] = pddl.check_goal(), False
        state["last_action"], state["_last_action"] = None, self._last_action
        actions = _applicable_actions(pddl, self._texts)
        mapping = {key: info.name for key, info in self._entity_infos.items()}
        state["_valid_actions"], state["_valid_commands"] = actions, [self._text(action, mapping) for action in actions]
        state["admissible_commands"] = sorted(set(state["_valid_commands"]))
        if self.request_infos.policy_commands:
            state["policy_commands"] = pddl.replan(self._entity_infos)

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
    """PddlState.all_applicable_actions, reusing the actions whose text is already known (operator ids never change within a game)."""
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
        verb, *arguments = name.split()
        action = textworld.logic.Action(name=verb, preconditions=[], postconditions=[])
        action.id, action.operator = operator.id, name
        action.mapping = {
            textworld.logic.Placeholder(p.name.strip("?"), p.type_name): textworld.logic.Variable(value, p.type_name)
            for p, value in zip(pddl._actions[verb].parameters, arguments, strict=False)
        }
        action.feedback_rule = pddl._logic.actions[verb].feedback_rule
        actions[name] = action
    return list(actions.values())


class TranslatedState(pddl_logic.PddlState):
    """A PddlState made from a translation; at the start after `rewind`. Its facts are built when they are first asked for."""

    FACTS = ("_facts", "_vars_by_name", "_vars_by_type", "_var_counts")

    def __init__(self, downward_lib: Any, pddl_problem: str, logic: Any, translation: Translation):
        self.downward_lib, self.pddl_problem, self._logic, self._translation = downward_lib, pddl_problem, logic, translation
        self.name2type = translation.objects
        self._actions = {
            verb: SimpleNamespace(name=verb, parameters=[SimpleNamespace(name=name, type_name=type_name) for name, type_name in parameters])
            for verb, parameters in translation.actions.items()
        }
        for name, above in translation.types:
            with contextlib.suppress(ValueError):  # as stock: a type that is known already
                logic.types.add(textworld.logic.Type(name, above))

    def rewind(self) -> None:
        self.downward_lib.load_sas(self._translation.sas)
        # Without a planner, the translation "for replanning" is only loaded, never used: the plain one will do.
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
        variables = [textworld.logic.Variable(id_, type_name) for id_, type_name, _ in self._translation.variables]
        for predicate, *arguments in self._translation.facts:
            self.add_fact(textworld.logic.Proposition(predicate, [variables[i] for i in arguments]))


def _translate(game: Mapping[str, Any], logic: Any, downward_lib: Any, planner: bool) -> Translation:
    """By stock TextWorld and Fast Downward; what the player reads first is left open."""

    made: list[tuple[Any, str]] = []

    def once(domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> tuple[Any, str]:
        if not made or (optimize and planner):
            made.append(_stock_pddl2sas(domain, problem, verbose=False, optimize=optimize))
        return made[-1]

    collecting = gc.isenabled()
    gc.disable()  # a third of the time went into looking for garbage, and there is none
    original, fast_downward.pddl2sas = fast_downward.pddl2sas, once
    try:
        state = _STOCK_STATE(downward_lib, game["pddl_problem"], logic)
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
        actions={action.name: [(p.name, p.type_name) for p in action.parameters] for action in state.task.actions},
        changing=sorted({effect.literal.predicate.lower() for action in state.task.actions for effect in action.effects}),
        variables=[(name, variable.type, demangler.demangle_alfred_name(name)) for name, variable in found.items()],
        facts=[[fact.name, *(place[variable.name] for variable in fact.arguments)] for fact in state.facts],
    )


_STOCK_STATE = pddl_logic.PddlState
_stock_pddl2sas = fast_downward.pddl2sas
_idle_libraries: list[Any] = []
"""Copies of Fast Downward whose game is over; processes that are forked from here inherit them."""


def _library() -> Any:
    return _idle_libraries.pop() if _idle_libraries else fast_downward.load_lib()


@functools.lru_cache(maxsize=8)
def _parsed_logic(domain: str, grammar: str) -> Any:
    return pddl_logic.GameLogic(domain=domain, grammar=grammar)


def _game_logic(domain: str, grammar: str) -> Any:
    """A GameLogic of this grammar. All ALFWorld games share one grammar but for the sentence that states the task: parse the rest once."""
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


def _clone(symbol: Any) -> Any:
    """A symbol of the same kind whose nested symbols are its own (what stock gets from deepcopy, less the context)."""
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
    assignments = context["state"].all_assignments(textgen.Rule.parse_conjunctive_query(condition), context["mapping"])
    return next(iter(assignments), None) is not None


@functools.cache
def install_caches() -> None:
    """Put the caches into TextWorld's text generator (once per process)."""
    parse = textgen._parse_and_convert
    parsed = functools.lru_cache(maxsize=None)(lambda text, rule_name: parse(text, rule_name=rule_name))
    textgen._parse_and_convert = lambda text, rule_name="symbols", trace=False: [_clone(s) for s in parsed(text, rule_name)]
    textgen.Rule = type("CachedRule", (), {"parse_conjunctive_query": staticmethod(functools.lru_cache(maxsize=None)(Rule.parse_conjunctive_query))})
    textgen.copy_context = _shallow_context
    textgen.Symbol.copy = _copy_symbol
    textgen.EvalSymbol.derive = _evaluate
    textgen.ContextSensitiveGrammar.replace = _replace
