"""SGLang servers, beside either backend: the first process plays and publishes, the others take part in its
passes over the weights."""

from __future__ import annotations

from functools import partial

from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.rollout.players import Players
from paw_hpc.rollout.playing import Parts, Playing
from paw_hpc.rollout.sglang.publish.buckets import Weights, shares, weights_of
from paw_hpc.rollout.sglang.publish.pipeline_stages import Stages
from paw_hpc.rollout.sglang.serving import Serving, following
from paw_hpc.system import distributed


def sglang(parts: Parts) -> Playing:
    recipe, runner, policy = parts.recipe, parts.runner, parts.policy
    stages: Stages | None = None
    if isinstance(policy, HuggingFacePolicy):
        config, tokenizer = policy.model.config, policy.tokenizer
        weights, bucket_bytes = weights_of(policy.model), recipe.rollout.publish.bucket_mib << 20
    else:
        from paw_hpc.policy.megatron.policy import MegatronPolicy

        assert isinstance(policy, MegatronPolicy)
        config, tokenizer = policy.hf_config, policy.tokenizer
        gather_bytes, bucket_bytes = shares(recipe.rollout.publish.bucket_mib << 20)
        weights = Weights(partial(policy.whole_tensors, gather_bytes), policy.whole_bytes)
        if policy.layout.pipeline > 1 and recipe.rollout.publish.path == "broadcast":
            own = Weights(partial(policy.whole_tensors, gather_bytes, own_stage=True), policy.whole_bytes)
            stages = Stages(own, policy.layout.senders)
    made: list[Serving] = []
    distributed.on_main(
        lambda: made.append(
            Serving(recipe, runner, parts.workspace, config, tokenizer, weights, bucket_bytes, stages)
        )
    )
    if not made:
        follower = following(recipe, runner, weights, bucket_bytes, stages)
        return Playing(None, follower, Players(meanwhile=follower.while_players_play), close=follower.close)
    [serving] = made
    return Playing(
        serving.engine,
        serving.publisher,
        Players(meanwhile=serving.publisher.while_players_play),
        ahead=True,
        collected=serving.collected,
        close=serving.close,
        servers=serving,
    )
