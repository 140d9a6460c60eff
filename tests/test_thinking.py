"""The whole way of a tiny model through each kind of chat template: it plays, is trained with the world
model, and is judged."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from paw_hpc import loop
from paw_hpc.build import Machinery
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.experience import Transition
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.policy.tiny import build_tiny
from paw_hpc.recipe import ModelSection, Recipe, TinyModel, parse_recipe
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.run.metrics import read_metrics
from paw_hpc.system.errors import DataError
from tests.rollout.chat_templates import OPENS, TEMPLATES, save

SAYS = "<think>here</think><action>look</action>"
TINY = TinyModel(hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, tie_embeddings=False)


def save_talker(tokenizer: PreTrainedTokenizerBase, folder: Path, sureness: float = 11.5) -> None:
    """A model that says SAYS, most of the time: what it says next depends on the last token alone.

    Nothing is written into the residual stream, so its end is the last token's embedding; the head's rows are
    those of the tokens that come before.
    """
    chat = ChatFormat(tokenizer)
    said = [*chat.prompt([{"role": "user", "content": "x"}])[-1:].tolist(), *chat.answer(SAYS).tolist()]
    assert len({*said}) == len(said), "one follower for each token"
    model = build_tiny(TINY, tokenizer, 0)
    with torch.no_grad():
        embeddings, head, layer = (
            model.get_input_embeddings().weight,
            model.get_output_embeddings().weight,
            model.model.layers[0],
        )
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        head.zero_()
        for before, after in itertools.pairwise(said):
            head[after] = (
                sureness * torch.nn.functional.normalize(embeddings[before], dim=0) / TINY.hidden_size**0.5
            )
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=TEMPLATES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save(TEMPLATES[kind], tmp_path_factory.mktemp(kind))
    save_talker(load_tokenizer(ModelSection(path=str(made))), made)
    return made


def recipe(model: Path, **env: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "thinks",
            "updates": 2,
            "threads": 1,
            "env": {"max_steps": 2, "train_games": 2, "task_types": ["pick_and_place_simple"], **env},
            "model": {"path": str(model), "device": "cpu"},
            "rollout": {"groups": 2, "group_size": 3, "max_prompt_tokens": 2000, "max_response_tokens": 12},
            "wm": {"max_observation_tokens": 24},
            "algorithm": {"kl_coefficient": 0.0},
            "optimizer": {"lr": 1e-4},
            "eval": {"panel": "valid_seen:2@0", "every": 2},
        }
    )


def test_the_whole_loop(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, played = load_tokenizer(ModelSection(path=str(folder))), list[Transition]()
    record = Collector._transition

    def recorded(self: Collector, *arguments: Any) -> Transition:
        played.append(record(self, *arguments))
        return played[-1]

    monkeypatch.setattr(Collector, "_transition", recorded)
    outcome = loop.train(recipe(folder), tmp_path / "run", command="test")
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert outcome.updates == 2 and len(played) == 2 * 12 + 4
    for update in metrics:
        assert update["train/invalid"] < 0.4 and update["policy/skipped_steps"] == 0
        assert (
            update["wm/loss"] > 0 and update["wm/selected_transitions"] > 0 and update["policy/grad_norm"] > 0
        )
    (result,) = read_evaluations(tmp_path / "run")
    assert result.games == 2
    opening = "<think>\n" if kind == "opens" else ""
    whole = SAYS.removeprefix("<think>") if kind == "opens" else SAYS
    as_meant = 0
    for t in played:
        parts = (t.prompt_ids, t.response_ids, t.bridge_ids, t.observation_ids)
        prompt, response, bridge, observation = (str(tokenizer.decode(ids.tolist())) for ids in parts)
        assert prompt.endswith(f"<|im_end|>\n<|im_start|>model\n{opening}") and (
            "26 July 2024" in prompt
        ) is (kind == "clock")
        assert (response + bridge).endswith("<|im_end|>\n<|im_start|>user\n") and observation
        if response == f"{whole}<|im_end|>":
            assert t.valid and bridge == "\n<|im_start|>user\n"
            as_meant += 1
    assert as_meant > 12


def test_a_response_is_read_by_the_reference_s_rule_too(kind: str, folder: Path) -> None:
    """The play of an evaluation; and every action would be invalid if the view were not told that the thought
    is opened."""
    with EventLoop() as runner, Machinery(recipe(folder, validity="format"), runner) as machinery:
        tasks = machinery.benchmark.tasks("valid_seen")[:1]

        def valid() -> set[bool]:
            groups, _ = machinery.play(tasks, 2, 0, purpose="eval", temperature=0.1)
            return {t.valid for group in groups for episode in group.episodes for t in episode.transitions}

        assert valid() == {True}
        machinery.chat.opens_thought = False
        assert valid() == {kind != "opens"}


@pytest.mark.parametrize("key", ["model.path", "model.tokenizer"])
def test_a_faulty_template_ends_the_start_in_one_line(key: str, tmp_path: Path) -> None:
    good, bad = save(OPENS, tmp_path / "good"), save(OPENS, tmp_path / "bad")
    for folder in (good, bad):
        save_talker(load_tokenizer(ModelSection(path=str(good))), folder)
    (bad / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content + 1 }}{% endfor %}")
    data = recipe(bad if key == "model.path" else good).model_dump(mode="json")
    if key == "model.tokenizer":
        data["model"]["tokenizer"] = str(bad)
    with pytest.raises(DataError) as caught:
        loop.train(parse_recipe(data), tmp_path / "run", command="test")
    assert str(caught.value) == (
        f"{key}: the chat template of the tokenizer in '{bad}' cannot be rendered (line 2): TypeError: can "
        'only concatenate str (not "int") to str'
    )
