"""Generation in process at the shape of Qwen2.5-1.5B: prompt tokens per second (prefill) and new tokens per
second (decoding), by slots."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu.common import by_kernel, device, markdown, options, synchronize, write
from benchmarks.gpu.synthetic import LENGTHS, TOY_LENGTHS, model_folder
from paw_hpc.policy.packed import use_packed_attention
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.decoder import Decoder


def requests(slots: int, prompt: int, response: int, vocabulary: int) -> list[tuple[int, GenerationRequest]]:
    rng = np.random.default_rng(0)
    return [
        (i, GenerationRequest(i, rng.integers(3, vocabulary, prompt).astype(np.int32), i, 1.0, response))
        for i in range(slots)
    ]


def measure(decoder: Decoder, asked: list[tuple[int, GenerationRequest]]) -> tuple[float, float, np.ndarray]:
    """(prompt tokens per second, new tokens per second, log-probs [slots, response]) of one batch of requests
    that all run to their limit."""
    synchronize()
    started = time.perf_counter()
    decoder.admit(asked)
    synchronize()
    prefilled = time.perf_counter()
    new, done = 0, []
    while decoder.live:
        new += decoder.live
        done += decoder.step()
    synchronize()
    seconds = time.perf_counter() - prefilled
    prompt_tokens = sum(len(request.prompt_ids) for _, request in asked)
    return (
        prompt_tokens / (prefilled - started),
        new / seconds,
        np.stack([c.logprobs for _, c in sorted(done, key=lambda pair: pair[0])]),
    )


def profiled(decoder: Decoder, asked: list[tuple[int, GenerationRequest]]) -> str:
    """Where a step spends the device's time."""
    decoder.admit(asked)
    for _ in range(3):
        decoder.step()
    found = by_kernel(lambda: [decoder.step() for _ in range(3)], calls=3)
    decoder.release()
    return found


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128])
        parser.add_argument("--folder", type=Path, help="where the random model is kept")

    chosen = options(__doc__, add)
    lengths = TOY_LENGTHS if chosen.toy else LENGTHS["alfworld"]
    slots = [2, 4] if chosen.toy else chosen.slots
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(chosen.folder or Path(scratch) / "model", chosen.toy)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if chosen.toy else torch.bfloat16
        ).to(device())
        tokenizer = AutoTokenizer.from_pretrained(folder)
    use_packed_attention(model)
    rows, profiles = [], []
    for count in slots:
        found = {}
        asked = requests(count, lengths.prompt, lengths.response, model.config.vocab_size)
        for way in (False, True):
            decoder = Decoder(model, tokenizer, count)
            decoder.eos_ids = frozenset()  # every request runs to its limit
            decoder._steps.record = way
            measure(decoder, requests(count, lengths.prompt, 4, model.config.vocab_size))
            prefill, decode, found[way] = measure(decoder, asked)
            rows.append(
                [
                    count,
                    "recorded" if way else "one by one",
                    f"{prefill:,.0f}",
                    f"{decode:,.0f}",
                    f"{1e3 * count / decode:.2f}",
                ]
            )
            if count == slots[-1]:
                profiles.append(f"## {count} slots, {rows[-1][1]}\n\n{profiled(decoder, asked)}")
        # later tokens may differ: one draw that falls on the other side of a rounding changes all that follow
        first = slice(0, 8)
        rows[-1].append(f"{np.abs(found[True][:, first] - found[False][:, first]).mean():.1e}")
        rows[-2].append("")
    header = [
        "slots",
        "kernels",
        "prompt tokens/s",
        "new tokens/s",
        "ms per step",
        "mean difference of the first log-probs",
    ]
    title = f"Generation in process, prompts of {lengths.prompt} and responses of {lengths.response} tokens"
    write(chosen.out, "generate", title, [markdown(header, rows), *profiles])


if __name__ == "__main__":
    main()
