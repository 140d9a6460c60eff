"""The in-process engine, beside either backend."""

from __future__ import annotations

from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.loading import load_model
from paw_hpc.policy.packed import use_packed_attention
from paw_hpc.rollout.engines.local import LivePublisher, LocalEngine
from paw_hpc.rollout.engines.weight_copy import CopyPublisher
from paw_hpc.rollout.players import Players
from paw_hpc.rollout.playing import Parts, Playing


def local(parts: Parts) -> Playing:
    """One process: it reads the trainer's own weights. Many: the first rank of each replica plays, with a
    whole copy of the model."""
    recipe, policy = parts.recipe, parts.policy
    if isinstance(policy, HuggingFacePolicy):
        engine = LocalEngine(
            policy.model, policy.tokenizer, recipe.rollout, conversation=recipe.env.conversation
        )
        return Playing(engine, LivePublisher(engine), collected=engine.drain_metrics, close=engine.close)
    from paw_hpc.policy.megatron.policy import MegatronPolicy

    assert isinstance(policy, MegatronPolicy)
    players = Players.of(policy.layout.leader)
    if not policy.layout.leader:
        return Playing(None, CopyPublisher(policy.whole_tensors, None, None), players)
    copy = load_model(recipe, policy.tokenizer).to(policy.device).eval()  # type: ignore[arg-type]
    use_packed_attention(copy)
    engine = LocalEngine(copy, policy.tokenizer, recipe.rollout, conversation=recipe.env.conversation)
    return Playing(
        engine,
        CopyPublisher(policy.whole_tensors, copy, engine),
        players,
        collected=engine.drain_metrics,
        close=engine.close,
    )
