"""Shapes of published models, for `paw plan` where the model's own folder is not at hand (a login node
without the weights).

From the models' config.json on the Hugging Face hub. A folder or a cached snapshot, where there is one, is
read instead.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from paw_hpc.policy.convert.architecture import Architecture, architecture_of, read_architecture
from paw_hpc.recipe import Recipe, policy_folder
from paw_hpc.system.errors import CheckpointError, RecipeError

_QWEN2 = partial(
    Architecture,
    model_type="qwen2",
    head_dim=128,
    qkv_bias=True,
    qk_norm=False,
    norm_eps=1e-6,
    max_positions=32768,
)
_QWEN3 = partial(
    Architecture,
    model_type="qwen3",
    head_dim=128,
    qkv_bias=False,
    qk_norm=True,
    norm_eps=1e-6,
    max_positions=40960,
    vocabulary=151936,
)
_LLAMA = partial(
    Architecture,
    model_type="llama",
    qkv_bias=False,
    qk_norm=False,
    norm_eps=1e-5,
    max_positions=131072,
    vocabulary=128256,
    tied=True,
)
_SMOLLM2 = _LLAMA(
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn_hidden=1536,
    vocabulary=49152,
    max_positions=8192,
)

_LOCAL = ("runs/", "./", "../", "/", "~")
"""How the path of a folder begins; anything else may be a name on the hub."""

PUBLISHED: dict[str, Architecture] = {
    "Qwen2.5-0.5B": _QWEN2(
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        ffn_hidden=4864,
        vocabulary=151936,
        tied=True,
    ),
    "Qwen2.5-1.5B": _QWEN2(
        layers=28, hidden=1536, heads=12, kv_heads=2, ffn_hidden=8960, vocabulary=151936, tied=True
    ),
    "Qwen2.5-3B": _QWEN2(
        layers=36, hidden=2048, heads=16, kv_heads=2, ffn_hidden=11008, vocabulary=151936, tied=True
    ),
    "Qwen2.5-7B": _QWEN2(
        layers=28, hidden=3584, heads=28, kv_heads=4, ffn_hidden=18944, vocabulary=152064, tied=False
    ),
    "Qwen2.5-14B": _QWEN2(
        layers=48, hidden=5120, heads=40, kv_heads=8, ffn_hidden=13824, vocabulary=152064, tied=False
    ),
    "Qwen2.5-32B": _QWEN2(
        layers=64, hidden=5120, heads=40, kv_heads=8, ffn_hidden=27648, vocabulary=152064, tied=False
    ),
    "Qwen2.5-72B": _QWEN2(
        layers=80, hidden=8192, heads=64, kv_heads=8, ffn_hidden=29568, vocabulary=152064, tied=False
    ),
    "Qwen3-0.6B": _QWEN3(layers=28, hidden=1024, heads=16, kv_heads=8, ffn_hidden=3072, tied=True),
    "Qwen3-1.7B": _QWEN3(layers=28, hidden=2048, heads=16, kv_heads=8, ffn_hidden=6144, tied=True),
    "Qwen3-4B": _QWEN3(layers=36, hidden=2560, heads=32, kv_heads=8, ffn_hidden=9728, tied=True),
    "Qwen3-8B": _QWEN3(layers=36, hidden=4096, heads=32, kv_heads=8, ffn_hidden=12288, tied=False),
    "Qwen3-14B": _QWEN3(layers=40, hidden=5120, heads=40, kv_heads=8, ffn_hidden=17408, tied=False),
    "Qwen3-32B": _QWEN3(layers=64, hidden=5120, heads=64, kv_heads=8, ffn_hidden=25600, tied=False),
    "Llama-3.2-1B": _LLAMA(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn_hidden=8192),
    "Llama-3.2-3B": _LLAMA(layers=28, hidden=3072, heads=24, kv_heads=8, head_dim=128, ffn_hidden=8192),
    **dict.fromkeys(("SmolLM2-135M", "smollm2"), _SMOLLM2),
}


class NotMadeYet(RecipeError):
    """The recipe's model or tokenizer is a local folder that does not exist (another command makes it)."""


def architecture_for(recipe: Recipe) -> Architecture:
    """The shape of the recipe's policy, without its weights.

    Raises:
        NotMadeYet: a local folder that is not there.
        RecipeError: the model is neither at hand nor one of `PUBLISHED`.
    """
    model = recipe.model
    if model.tiny is not None:
        return _tiny(recipe)
    assert model.path is not None
    folder = _folder(model.path)
    try:
        if folder.is_dir():
            return read_architecture(folder)[0]
        if model.path.startswith(_LOCAL):
            raise NotMadeYet(
                f"model.path: there is no folder {model.path} yet; make it first (paw warm-start), or name "
                "another"
            )
        name = model.path.rpartition("/")[2]
        base = max(
            (known for known in PUBLISHED if name == known or name.startswith(f"{known}-")),
            key=len,
            default=None,
        )
        return PUBLISHED[base] if base is not None else _cached(model.path)
    except CheckpointError as error:
        raise RecipeError(f"model.path: {error}") from None


def _folder(path: str) -> Path:
    return policy_folder(path) or Path(path).expanduser()


def parameters(model: Architecture) -> int:
    """Of the whole model: tied embeddings once."""
    embedding = model.vocabulary * model.hidden
    return model.layers * layer_parameters(model) + embedding * (1 if model.tied else 2) + model.hidden


def layer_parameters(model: Architecture) -> int:
    """Of one block: attention, feed-forward, norms, biases."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = (
        model.hidden * (queries + 2 * keys)
        + queries * model.hidden
        + (queries + 2 * keys if model.qkv_bias else 0)
    )
    return (
        attention
        + 3 * model.hidden * model.ffn_hidden
        + 2 * model.hidden
        + (2 * model.head_dim if model.qk_norm else 0)
    )


def _cached(name: str) -> Architecture:
    from transformers import AutoConfig

    try:
        return architecture_of(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        known = ", ".join(PUBLISHED)
        raise RecipeError(
            f"model.path: the configuration of '{name}' is not at hand ({str(error).splitlines()[0]}); a "
            f"local folder, or one of {known}"
        ) from None


def _tiny(recipe: Recipe) -> Architecture:
    from paw_hpc.policy.loading import load_tokenizer

    tiny = recipe.model.tiny
    assert tiny is not None
    try:
        vocabulary = len(load_tokenizer(recipe.model))
    except RecipeError as error:
        raise NotMadeYet(str(error)) from None
    return Architecture(
        model_type="qwen2",
        layers=tiny.layers,
        hidden=tiny.hidden_size,
        heads=tiny.heads,
        kv_heads=tiny.kv_heads,
        head_dim=tiny.hidden_size // tiny.heads,
        ffn_hidden=tiny.intermediate_size,
        vocabulary=vocabulary,
        tied=tiny.tie_embeddings,
        qkv_bias=True,
        qk_norm=False,
        norm_eps=1e-6,
        max_positions=recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens,
    )
