"""Megatron-core without a GPU. It names CUDA in four ways: `torch.cuda.current_device()` and `synchronize()`,
the literal device "cuda", tensor types as strings ("torch.cuda.FloatTensor"), and CUDA's random states. On a
machine without CUDA, inside `megatron()`, each of them means the CPU.

Everything of Megatron-core that builds, runs or saves a model is called inside. Where there is a GPU it
changes nothing.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from paw_hpc.policy.megatron.patches import MEGATRON, patched

STAND_IN = torch.device("cpu")
"""What CUDA means without a GPU."""
_CUDA_TYPES = {
    f"torch.{name}": f"torch.cuda.{name}" for name in ("FloatTensor", "BFloat16Tensor", "HalfTensor")
}


def megatron() -> AbstractContextManager[None]:
    """Use as `with megatron():` around calls into Megatron-core; may be nested. Holds for the calling
    thread."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _on_cpu()


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """For what warns although the package's own filters are set (PyTorch's distributed checkpoints, for
    one)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    from megatron.core.tensor_parallel import random

    patches: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (torch.cuda, "current_device", lambda: STAND_IN),
        (torch.cuda, "synchronize", lambda *_, **__: None),
        (random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),
        (random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(patched(owner, name, replacement, written_for=MEGATRON))
        stack.enter_context(_CudaMeansCpu())
        yield


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.cuda:
            return args[0]
        device = kwargs.get("device")
        if device is not None and not isinstance(device, int) and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": STAND_IN}
        result = function(*args, **kwargs)
        # Tensor.type() without an argument asks; the optimizer knows only the names of CUDA's types.
        return (
            _CUDA_TYPES.get(result, result)
            if function is torch.Tensor.type and isinstance(result, str)
            else result
        )
