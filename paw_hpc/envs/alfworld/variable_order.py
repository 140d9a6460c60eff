"""In which order Fast Downward's translator writes the variables of a planning task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def variable_order(
    count: int, operators: Sequence[Any], axioms: Sequence[Any], goal: Mapping[int, int]
) -> list[int]:
    """Fast Downward's order of variables: that of its causal graph (what an operator reads before what it
    changes), cut until it has no cycles.

    Args:
        count: variables are the numbers below it.
        operators: with `prevail` and `pre_post`, as `fast_translation` has them.
        axioms: with `condition` and `effect`.
        goal: variable -> value.
    """
    from fast_downward.translate.sccs import get_sccs_adjacency_list
    from fast_downward.translate.variable_order import MaxDAG

    weights: list[defaultdict[int, int]] = [defaultdict(int) for _ in range(count)]
    for operator in operators:
        sources = [variable for variable, _ in operator.prevail]
        sources += [variable for variable, before, _, _ in operator.pre_post if before != -1]
        for target, _, _, conditions in operator.pre_post:
            for source in sources:
                weights[source][target] += 1
            for source, _ in conditions:
                weights[source][target] += 1
    for axiom in axioms:
        for source, _ in axiom.condition:
            weights[source][axiom.effect[0]] += 1
    targets = [
        [(target, weight) for target, weight in sorted(of_source.items()) if target != source]
        for source, of_source in enumerate(weights)
    ]
    order: list[int] = []
    for component in get_sccs_adjacency_list([[target for target, _ in edges] for edges in targets]):
        if len(component) == 1:
            order.append(component[0])
            continue
        inside = set(component)
        graph: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for variable in component:
            for target, weight in targets[variable]:
                if target in inside:
                    if target in goal:  # weighs so much that it comes last
                        graph[variable].append((target, 100_000 + weight))
                    graph[variable].append((target, weight))
        order.extend(MaxDAG(graph, component).get_result())
    return order
