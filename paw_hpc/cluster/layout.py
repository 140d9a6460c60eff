"""Which node runs what: trainer, servers, retriever; their processes, GPUs and ports. Pure functions of a
recipe.

Three shapes. Disaggregated (`cluster.rollout_nodes` > 0): trainer nodes, then nodes that only serve. Single
node split (`cluster.trainer_gpus`): the first GPUs train, the others serve. Colocated
(`rollout.fleet.colocated`, or a CPU node): trainer and servers take turns on the same node. In the last two,
and with the in-process engine, the trainer starts what it plays with; in the first, the job starts the
servers beside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import RecipeError

RoleName = Literal["trainer", "rollout", "retriever"]
Shape = Literal["in process", "disaggregated", "single node", "colocated"]

PORTS = (20_000, 12_000)
"""First port and how many are used: below Linux's ephemeral range (32768 and up), which the system gives to
anybody."""
_PORTS_PER_JOB = 24


@dataclass(frozen=True, slots=True)
class Role:
    """One group of processes: `nodes` x `processes_per_node`, each with `gpus_per_process` GPUs."""

    name: RoleName
    first_node: int
    nodes: int
    processes_per_node: int
    gpus_per_process: int = 0
    first_gpu: int = 0
    """On its nodes: GPUs before it belong to another role."""

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def node_indices(self) -> range:
        return range(self.first_node, self.first_node + self.nodes)

    @property
    def gpus_per_node(self) -> int:
        return self.processes_per_node * self.gpus_per_process


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """What `lay_out` found possible. Nodes are counted from 0; the batch script runs on node 0."""

    shape: Shape
    gpus_per_node: int
    trainer: Role
    rollout: Role | None
    """Servers that the job starts beside the trainer; None: the trainer starts its own, or needs none."""
    retriever: Role | None
    own_servers: int = 0
    """Servers that the trainer starts itself."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """In the order of their nodes."""
        return tuple(role for role in (self.trainer, self.rollout, self.retriever) if role is not None)

    @property
    def nodes(self) -> int:
        return sum(role.nodes for role in self.roles)

    @property
    def gpus(self) -> int:
        """Of the allocation."""
        return self.nodes * self.gpus_per_node

    def node(self, index: int) -> str:
        """What one node runs, in a few words."""
        return ", ".join(
            _words(role, self.own_servers if role.name == "trainer" else 0)
            for role in self.roles
            if index in role.node_indices
        )


def lay_out(recipe: Recipe) -> ClusterLayout:
    """The layout that the recipe's `cluster`, `megatron` and `rollout.fleet` sections describe.

    Raises:
        RecipeError: roles that do not fit their nodes or do not divide, with the key to change.
    """
    trainer = _trainer(recipe)
    rollout, own = _servers(recipe, trainer)
    nodes = trainer.nodes + (rollout.nodes if rollout else 0)
    retriever = Role("retriever", nodes, 1, 1) if _wants_retriever(recipe) else None
    return ClusterLayout(
        _shape(recipe, rollout), recipe.cluster.gpus_per_node, trainer, rollout, retriever, own
    )


def port(key: str, use: Literal["meeting", "retriever", "server"], index: int = 0) -> int:
    """A TCP port of an attempt: the same on every node without asking, and for others not to be guessed. Two
    attempts on one node may want the same (1 in 500 pairs): the one that finds it taken fails, and its next
    attempt has others.

    Args:
        key: the attempt's (see keys.py).
        index: of the server on its node; each has two ports, this one and the next.
    """
    first, count = PORTS
    offset = {"meeting": 0, "retriever": 1, "server": 2 + 2 * index}[use]
    if offset >= _PORTS_PER_JOB:
        raise ValueError(
            f"a job has ports for {(_PORTS_PER_JOB - 2) // 2} servers on a node, not for {index + 1}"
        )
    return (
        first
        + int.from_bytes(hashlib.sha256(f"ports {key}".encode()).digest())
        % (count // _PORTS_PER_JOB)
        * _PORTS_PER_JOB
        + offset
    )


def _trainer(recipe: Recipe) -> Role:
    c = recipe.cluster
    gpus = c.trainer_gpus if c.trainer_gpus is not None else c.gpus_per_node
    per_node = c.processes_per_node or gpus or max(1, recipe.processes // c.trainer_nodes)
    if recipe.policy.backend == "huggingface":
        per_node = c.processes_per_node or 1
        if c.trainer_nodes * per_node != 1:
            raise RecipeError(
                "cluster.trainer_nodes: policy.backend=huggingface trains in one process, not on "
                f"{c.trainer_nodes} x {per_node};"
                " use policy.backend=megatron, or cluster.trainer_nodes=1 cluster.processes_per_node=1"
            )
    if gpus and per_node > gpus:
        raise RecipeError(
            f"cluster.processes_per_node: {per_node} trainer processes on a node with {gpus} GPUs for "
            "them; at most one per GPU"
        )
    role = Role("trainer", 0, c.trainer_nodes, per_node, 1 if gpus else 0)
    if recipe.policy.backend == "megatron":
        _check_parallel(recipe, role)
    return role


def _check_parallel(recipe: Recipe, trainer: Role) -> None:
    m = recipe.megatron
    model = m.tensor_parallel * m.pipeline_parallel * m.context_parallel
    sizes = f"tensor {m.tensor_parallel} x pipeline {m.pipeline_parallel} x context {m.context_parallel}"
    started = f"{trainer.nodes} trainer nodes x {trainer.processes_per_node}"
    if trainer.processes % model:
        raise RecipeError(
            f"megatron: {sizes} parallel processes do not divide the {trainer.processes} of {started};"
            f" change cluster.trainer_nodes, cluster.processes_per_node or the sizes so that {model} does"
        )
    if m.data_parallel not in (None, trainer.processes // model):
        raise RecipeError(
            f"megatron.data_parallel: {m.data_parallel}, but {started} processes / {sizes} make "
            f"{trainer.processes // model}; leave it out"
        )
    if trainer.gpus_per_node and m.tensor_parallel > trainer.processes_per_node:
        raise RecipeError(
            f"megatron.tensor_parallel: {m.tensor_parallel} ranks would span nodes of "
            f"{trainer.processes_per_node} GPUs, whose network is too slow"
            f" for it; use at most {trainer.processes_per_node}, and pipeline_parallel across nodes"
        )


def _servers(recipe: Recipe, trainer: Role) -> tuple[Role | None, int]:
    """Servers that the job starts, and how many the trainer starts itself."""
    c, fleet = recipe.cluster, recipe.rollout.fleet
    if not recipe.rollout.starts_servers:
        if c.rollout_nodes:
            raise RecipeError(
                f"cluster.rollout_nodes: {c.rollout_nodes}, but rollout.engine={recipe.rollout.engine} "
                "starts no servers; use sglang, or 0 nodes"
            )
        if c.trainer_gpus not in (None, c.gpus_per_node):
            raise RecipeError(
                "cluster.trainer_gpus: rollout.engine={recipe.rollout.engine} leaves the other GPUs idle; "
                "leave it out, or use sglang"
            )
        return None, 0
    if fleet.addresses:
        if c.rollout_nodes:
            raise RecipeError(
                "cluster.rollout_nodes: rollout.fleet.addresses names servers that run already; leave one "
                "of the two out"
            )
        return None, 0
    if not c.rollout_nodes:
        return None, _own_servers(recipe, trainer)
    per_node = c.servers_per_node or max(1, c.gpus_per_node // fleet.tensor_parallel)
    if c.gpus_per_node and per_node * fleet.tensor_parallel > c.gpus_per_node:
        raise RecipeError(
            f"cluster.servers_per_node: {per_node} servers x {fleet.tensor_parallel} GPUs "
            "(rollout.fleet.tensor_parallel) on a node of"
            f" {c.gpus_per_node}; at most {c.gpus_per_node // fleet.tensor_parallel}"
        )
    if per_node > (_PORTS_PER_JOB - 2) // 2:
        raise RecipeError(
            f"cluster.servers_per_node: {per_node}; at most {(_PORTS_PER_JOB - 2) // 2} servers share a node"
        )
    if fleet.colocated:
        raise RecipeError(
            "rollout.fleet.colocated: servers on nodes of their own (cluster.rollout_nodes) share no GPU "
            "with the trainer; use one of the two"
        )
    return Role(
        "rollout", trainer.nodes, c.rollout_nodes, per_node, fleet.tensor_parallel if c.gpus_per_node else 0
    ), 0


def _own_servers(recipe: Recipe, trainer: Role) -> int:
    c, fleet = recipe.cluster, recipe.rollout.fleet
    needed = -(-fleet.servers // c.trainer_nodes) * fleet.tensor_parallel
    if not c.gpus_per_node:
        return fleet.servers
    if fleet.colocated:
        if needed > c.gpus_per_node:
            raise RecipeError(
                f"rollout.fleet.servers: {fleet.servers} x {fleet.tensor_parallel} GPUs on "
                f"{c.trainer_nodes} nodes of {c.gpus_per_node}; use fewer"
            )
        return fleet.servers
    free = c.gpus_per_node - trainer.gpus_per_node
    if needed > free:
        raise RecipeError(
            f"cluster: {fleet.servers} servers need {needed} GPUs of a node, and its "
            f"{trainer.processes_per_node} trainer processes leave {free} of"
            f" {c.gpus_per_node}; set cluster.rollout_nodes, cluster.trainer_gpus or rollout.fleet.colocated"
        )
    return fleet.servers


def _wants_retriever(recipe: Recipe) -> bool:
    if not recipe.cluster.retriever_node:
        return False
    if recipe.env.name != "search" or recipe.env.search.retriever != "http":
        raise RecipeError(
            "cluster.retriever_node: it serves env.name=search with env.search.retriever=http; leave it out"
        )
    return True


def _shape(recipe: Recipe, rollout: Role | None) -> Shape:
    if recipe.rollout.own_weights:
        return "in process"
    if not recipe.rollout.starts_servers:
        return "disaggregated"
    if rollout is not None or recipe.rollout.fleet.addresses:
        return "disaggregated"
    return "colocated" if recipe.rollout.fleet.colocated else "single node"


def _words(role: Role, own_servers: int) -> str:
    what = {"trainer": "trainer process", "rollout": "SGLang server", "retriever": "retriever"}[role.name]
    gpus = (
        f" x {role.gpus_per_process} GPU{'s' * (role.gpus_per_process > 1)}"
        if role.gpus_per_process
        else " (CPU)"
    )
    own = (
        f", {own_servers} SGLang server{'s' * (own_servers > 1)} started by the trainer"
        if own_servers
        else ""
    )
    plural = ("es" if role.name == "trainer" else "s") if role.processes_per_node > 1 else ""
    return f"{role.processes_per_node} {what}{plural}{gpus}{own}"
