"""Nodes and GPUs to roles: what divides is laid out, what does not is refused by the key to change."""

from __future__ import annotations

from typing import Any

import pytest

from paw_hpc.cluster.layout import PORTS, lay_out, port
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.keys import new_key


def recipe(cluster: dict[str, Any], rollout: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "Qwen/Qwen2.5-7B-Instruct"},
            "policy": {"backend": "megatron"},
            "cluster": cluster,
            "rollout": rollout or {},
            **sections,
        }
    )


SGLANG = {"engine": "sglang"}


def test_disaggregated_nodes_train_first_and_serve_after() -> None:
    layout = lay_out(
        recipe(
            {"trainer_nodes": 2, "rollout_nodes": 3, "gpus_per_node": 8},
            {"engine": "sglang", "fleet": {"tensor_parallel": 2}},
            megatron={"tensor_parallel": 4},
        )
    )
    assert layout.shape == "disaggregated" and layout.nodes == 5 and layout.gpus == 40
    assert layout.trainer.processes == 16 and list(layout.trainer.node_indices) == [0, 1]
    assert (
        layout.rollout is not None
        and layout.rollout.processes == 12
        and list(layout.rollout.node_indices) == [2, 3, 4]
    )
    assert layout.node(0) == "8 trainer processes x 1 GPU" and layout.node(4) == "4 SGLang servers x 2 GPUs"


def test_every_gpu_of_a_node_is_used_once_at_most() -> None:
    for servers, tensor, trainers in ((2, 2, 4), (1, 4, 4), (4, 1, 4)):
        layout = lay_out(
            recipe(
                {"gpus_per_node": 8, "trainer_gpus": trainers},
                {"engine": "sglang", "fleet": {"servers": servers, "tensor_parallel": tensor}},
            )
        )
        assert layout.shape == "single node" and layout.nodes == 1 and layout.own_servers == servers
        assert layout.trainer.gpus_per_node + servers * tensor <= 8


def test_colocated_servers_take_turns_with_the_trainer_on_all_gpus() -> None:
    layout = lay_out(
        recipe({"gpus_per_node": 8}, {"engine": "sglang", "fleet": {"servers": 8, "colocated": True}})
    )
    assert layout.shape == "colocated" and layout.trainer.processes == 8 and layout.own_servers == 8


def test_a_megatron_recipe_of_two_ranks_needs_no_cluster_section() -> None:
    layout = lay_out(recipe({}, megatron={"tensor_parallel": 2}))
    assert layout.nodes == 1 and layout.trainer.processes == 2 and layout.shape == "in process"


def test_a_retriever_gets_the_last_node() -> None:
    search = {"name": "search", "search": {"retriever": "http", "url": "http://localhost:1"}}
    layout = lay_out(recipe({"rollout_nodes": 1, "retriever_node": True}, SGLANG, env=search))
    assert layout.nodes == 3 and layout.node(2) == "1 retriever (CPU)"


@pytest.mark.parametrize(
    ("cluster", "rollout", "sections", "said"),
    [
        (
            {"gpus_per_node": 6},
            {},
            {"megatron": {"tensor_parallel": 4}},
            "do not divide the 6 of 1 trainer nodes x 6",
        ),
        (
            {"gpus_per_node": 8},
            {},
            {"megatron": {"tensor_parallel": 2, "data_parallel": 8}},
            "megatron.data_parallel: 8",
        ),
        (
            {"trainer_nodes": 2, "gpus_per_node": 2},
            {},
            {"megatron": {"tensor_parallel": 4}},
            "span nodes of 2 GPUs",
        ),
        ({"trainer_nodes": 2}, {}, {"policy": {"backend": "huggingface"}}, "trains in one process"),
        ({"rollout_nodes": 1}, {}, {}, "rollout.engine=local starts no servers"),
        ({"gpus_per_node": 8}, SGLANG, {}, "leave 0 of 8"),
        ({"gpus_per_node": 8, "trainer_gpus": 4}, {}, {}, "leaves the other GPUs idle"),
        (
            {"gpus_per_node": 8, "rollout_nodes": 1, "servers_per_node": 5},
            {"engine": "sglang", "fleet": {"tensor_parallel": 2}},
            {},
            "at most 4",
        ),
        ({"rollout_nodes": 1}, {"engine": "sglang", "fleet": {"colocated": True}}, {}, "use one of the two"),
        (
            {"rollout_nodes": 1},
            {"engine": "sglang", "fleet": {"addresses": ["http://a:1"]}},
            {},
            "names servers that run already",
        ),
        ({"retriever_node": True}, {}, {}, "env.search.retriever=http"),
        ({"gpus_per_node": 4, "processes_per_node": 8}, {}, {}, "at most one per GPU"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(
    cluster: dict[str, Any], rollout: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        lay_out(recipe(cluster, rollout, **sections))


def test_ports_of_an_attempt_follow_from_its_key() -> None:
    uses = [("meeting", 0), ("retriever", 0), *(("server", i) for i in range(11))]
    keys = [new_key() for _ in range(100)]
    for key in keys:
        ports = [port(key, use, index) for use, index in uses]  # type: ignore[arg-type]
        taken = {
            p
            for (use, _), first in zip(uses, ports, strict=True)
            for p in ((first, first + 1) if use == "server" else (first,))
        }
        assert len(taken) == 2 + 2 * 11 and all(PORTS[0] <= p < PORTS[0] + PORTS[1] for p in taken)
    # Anywhere in the range: 100 keys have 90 blocks of 500 on average.
    assert len({port(key, "meeting") for key in keys}) > 70 and port(keys[0], "meeting") == port(
        keys[0], "meeting"
    )
    with pytest.raises(ValueError, match="11 servers"):
        port("key", "server", 11)
