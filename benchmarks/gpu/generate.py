"""Generation in process at the shape of Qwen2.5-1.5B: prompt tokens per second (prefill) and new tokens per second (decoding), by slots."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu.common import device, markdown, options, synchronize, write
from benchmarks.gpu.synthetic import LENGTHS, TOY_LENGTHS, model_folder
from paw_hpc.policy.packed import use_packed_attention
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.decoder import Decoder


def measure(decoder: Decoder, slots: int, prompt: int, response: int, vocabulary: int) -> tuple[float, float]:
    """(prompt tokens per second, new tokens per second), of one batch of `slots` requests that all run to `response` tokens."""
    rng = np.random.default_rng(0)
    requests = [(i, GenerationRequest(i, rng.integers(3, vocabulary, prompt).astype(np.int32), i, 1.0, response)) for i in range(slots)]
    synchronize()
    started = time.perf_counter()
    decoder.admit(requests)
    synchronize()
    prefilled = time.perf_counter()
    new = 0
    while decoder.live:
        new += decoder.live
        decoder.step()
    synchronize()
    return slots * prompt / (prefilled - started), new / (time.perf_counter() - prefilled)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128])
        parser.add_argument("--folder", type=Path, help="where the random model is kept")

    chosen = options(__doc__, add)
    lengths = TOY_LENGTHS if chosen.toy else LENGTHS["alfworld"]
    slots = [2, 4] if chosen.toy else chosen.slots
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(chosen.folder or Path(scratch) / "model", chosen.toy)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32 if chosen.toy else torch.bfloat16).to(device())
        tokenizer = AutoTokenizer.from_pretrained(folder)
    use_packed_attention(model)
    rows = []
    for count in slots:
        decoder = Decoder(model, tokenizer, count)
        decoder.eos_ids = frozenset()  # every request runs to its limit
        measure(decoder, count, lengths.prompt, 4, model.config.vocab_size)
        prefill, decode = measure(decoder, count, lengths.prompt, lengths.response, model.config.vocab_size)
        rows.append([count, f"{prefill:,.0f}", f"{decode:,.0f}", f"{1e3 * count / decode:.2f}"])
    header = ["slots", "prompt tokens/s", "new tokens/s", "ms per step"]
    write(chosen.out, "generate", f"Generation in process, prompts of {lengths.prompt} and responses of {lengths.response} tokens", [markdown(header, rows)])


if __name__ == "__main__":
    main()
