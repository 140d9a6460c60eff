"""The fast translator writes Fast Downward's own text, character for character, or leaves the task to it."""

from __future__ import annotations

from typing import Any

import fast_downward
import pytest

from paw_hpc.envs.alfworld import fast_translation, games
from paw_hpc.envs.alfworld.reachability import Rule, Unsupported, reach
from paw_hpc.recipe import TASK_TYPES

ROOMS = """
(define (domain rooms)
 (:requirements :adl :typing :action-costs :derived-predicates)
 (:types room thing - object  lamp ball - thing)
 (:constants hall - room)
 (:predicates (in ?t - thing ?r - room) (here ?r - room) (free) (lit ?l - lamp) (dusty ?t - thing)
              (seen ?t - thing) (door ?a ?b - room) (broken ?l - lamp))
 (:functions (total-cost) - number)
 (:action go :parameters (?a - room ?b - room)
  :precondition (and (here ?a) (door ?a ?b) (not (= ?a ?b)))
  :effect (and (not (here ?a)) (here ?b) (increase (total-cost) 2)))
 (:action take :parameters (?t - thing ?r - room)
  :precondition (and (free) (here ?r) (in ?t ?r) (or (not (dusty ?t)) (seen ?t)))
  :effect (and (not (free)) (not (in ?t ?r)) (in ?t ?r) (seen ?t) (increase (total-cost) 1)))
 (:action drop :parameters (?t - thing) :precondition (seen ?t) :effect (and (free) (in ?t hall)))
 (:action switch :parameters (?l - lamp)
  :precondition (exists (?r - room) (and (here ?r) (in ?l ?r) (not (broken ?l))))
  :effect (and (when (lit ?l) (not (lit ?l))) (when (not (lit ?l)) (lit ?l))
               (when (dusty ?l) (seen ?l)) (when (seen ?l) (not (dusty ?l)))))
 (:action wait :parameters () :precondition () :effect (and (free) (increase (total-cost) 1)))
 (:action rest :parameters (?r - room) :precondition (not (here ?r)) :effect (and))
)
"""
HOUSE = """
(define (problem house) (:domain rooms)
 (:objects attic cellar - room  desk-lamp floor-lamp - lamp  red blue - ball)
 (:init (here attic) (free) (door attic hall) (door hall attic) (door hall hall) (in red attic) (in blue cellar)
        (in desk-lamp attic) (in floor-lamp hall) (dusty desk-lamp) (broken floor-lamp) (= (total-cost) 0))
 (:goal (and (exists (?l - lamp) (and (lit ?l) (seen red))) {goal}))
 {metric}
)
"""


def problem(goal: str = "(in red hall)", metric: str = "") -> str:
    return HOUSE.format(goal=goal, metric=metric)


@pytest.mark.parametrize("metric", ["", "(:metric minimize (total-cost))"])
@pytest.mark.parametrize("goal", ["(in red hall)", "", "(door attic hall)", "(free) (seen desk-lamp)"])
def test_a_task_of_all_kinds_of_actions_reads_as_fast_downwards(goal: str, metric: str) -> None:
    """Costs, constants, subtypes, equality, no parameters, what is deleted and added, conditional effects,
    derived goals, what can never be reached."""
    expected = fast_downward.pddl2sas(ROOMS, problem(goal, metric))[1]
    found = fast_translation.translated(ROOMS, problem(goal, metric))
    assert found is not None and found[1] == expected
    assert "switch desk-lamp" in expected and "switch floor-lamp" not in expected, "it is broken"
    changed = problem(goal, metric).replace("(dusty desk-lamp)", "(dusty red)")
    other = fast_translation.translated(ROOMS, changed)
    assert other is not None and other[1] != expected, "control: another task reads otherwise"


def numbered(text: str, task: Any) -> str:
    """Every object of a text by its number: within the parentheses of facts, and behind an action's name."""
    places = {name: str(place) for place, name in enumerate(thing.name for thing in task.objects)}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(("Atom ", "NegatedAtom ")):
            fact, _, names = line[:-1].partition("(")
            lines[number] = f"{fact}({', '.join(places[n] for n in names.split(', ') if n)})"
        elif number and lines[number - 1] == "begin_operator":
            verb, *words = line.split(" ")
            lines[number] = " ".join([verb, *(places[n] for n in words if n)])
    return "\n".join(lines)


def test_games_read_as_fast_downwards_by_names_and_by_numbers(session_cache: object) -> None:
    tasks = games.tasks("train")
    for kind in TASK_TYPES:
        game = games.load_game(next(task for task in tasks if task.task_type == kind))
        texts = game["pddl_domain"], game["pddl_problem"]
        task, expected = fast_downward.pddl2sas(*texts)
        for found, text in (
            (fast_translation.translated(*texts), expected),
            (fast_translation.translated(*texts, numbered=True), numbered(expected, task)),
        ):
            assert found is not None and found[1] == text
        assert len(numbered(expected, task)) < 0.5 * len(expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(free) (in ?t hall)", "(free) (forall (?r - room) (not (in ?t ?r)))"),
        (":precondition (seen ?t)", ":precondition (known ?t)"),
        ("(door ?a ?b) (not", "(door ?a ?a) (not"),
        ("(increase (total-cost) 2)", "(increase (total-cost) (far ?a ?b))"),
    ],
)
def test_what_it_does_not_know_is_left_to_fast_downward(old: str, new: str) -> None:
    domain = ROOMS.replace(old, new)
    domain = domain.replace("(seen ?t - thing)", "(seen ?t - thing) (known ?t - thing)")
    domain = domain.replace("(total-cost) - number", "(total-cost) - number (far ?a ?b - room) - number")
    domain = domain.replace("(:action go", "(:derived (known ?t - thing) (seen ?t))\n (:action go", 1)
    fars = " ".join(f"(= (far {a} {b}) 3)" for a in ("attic", "hall", "cellar") for b in ("attic", "hall"))
    house = problem(metric="(:metric minimize (total-cost))").replace("(free)", f"(free) {fars}", 1)
    assert old in ROOMS and domain.count(new) == 1
    assert fast_translation.translated(domain, house) is None
    assert fast_downward.pddl2sas(domain, house)[1].startswith("begin_version"), "it does know it"


@pytest.mark.parametrize("goal", ["(in blue hall)", "(not (here attic))"])
def test_goals_that_cannot_be_reached_or_are_no_facts_are_too(goal: str) -> None:
    task = (
        problem().replace("(exists (?l - lamp) (and (lit ?l) (seen red)))", "").replace("(in red hall)", goal)
    )
    assert fast_translation.translated(ROOMS, task) is None


def test_a_rule_meets_facts_that_come_in_any_order() -> None:
    """a -> b -> c by a path of two and by one of three; nobody reaches d."""
    steps = [("step", "a", "b"), ("step", "b", "c"), ("step", "c", "a"), ("step", "d", "a")]
    rule = Rule(["abcd", "abcd"], [("at", 0), ("step", 0, 1)], [("at", 1), ("been", "a")])
    twice = Rule(["abcd", "bc"], [("at", 0), ("at", 1)], [("both", 0, 1)])
    known = reach([rule, twice], [("at", "a"), *steps])
    assert {fact for fact in known if fact[0] == "at"} == {("at", "a"), ("at", "b"), ("at", "c")}
    assert rule.found == {("a", "b"), ("b", "c"), ("c", "a")} and ("been", "a") in known
    assert twice.found == {(a, b) for a in "abc" for b in "bc"}
    with pytest.raises(Unsupported):
        reach([Rule(["abcd"], [("step", 0, 0)], [("at", 0)])], steps)
