"""A GPU that has shapes, dtypes and a device, and computes nothing: what would mix devices raises, and what
would make the host wait is written down.

PyTorch lets a program name a device of its own ("gpu" here), with autograd, on any build; fake tensors give
it shapes. So the paths of a GPU run on a machine without one. The names of the calls that read from the
device (`.cpu()`, `.item()`, `bool(...)`) are patched to answer with zeros.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

ROOT = Path(__file__).resolve().parents[2]
NAME = "gpu"
MODE = FakeTensorMode(allow_non_fake_inputs=True)

_READS: dict[Any, Callable[[torch.Tensor], Any]] = {
    torch.Tensor.cpu: lambda t: torch.zeros(t.shape, dtype=t.dtype),
    torch.Tensor.item: lambda t: (t.dtype.is_floating_point and 1.0) or 0,
    torch.Tensor.tolist: lambda t: torch.zeros(t.shape, dtype=t.dtype).tolist(),
    torch.Tensor.__bool__: lambda t: True,
    torch.Tensor.__float__: lambda t: 1.0,
    torch.Tensor.__int__: lambda t: 0,
    torch.Tensor.__index__: lambda t: 0,
    torch.Tensor.numpy: lambda t: torch.zeros(t.shape, dtype=t.dtype).numpy(),
}
_SIZES = {
    torch.Tensor.nonzero,
    torch.nonzero,
    torch.masked_select,
    torch.Tensor.masked_select,
    torch.unique,
    torch.Tensor.unique,
}
"""What has as many elements as the data says: the host has to wait for that, too."""


_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
del FakeTensor.tolist  # it reads element by element; the device is read once
FakeTensor.is_cuda = property(lambda tensor: tensor.device.type == NAME)  # type: ignore[assignment,misc]


def on_device(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    with MODE:
        return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=NAME)


def moved(module: nn.Module) -> Any:
    """A module whose weights and buffers are on the device; ties stay ties."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(
                        on_device(parameter.detach()), requires_grad=parameter.requires_grad
                    )
                    # Megatron keeps notes on its parameters
                    known[id(parameter)].__dict__.update(parameter.__dict__)
                part._parameters[name] = known[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_device(buffer)
    return module


class FakeGPU(TorchFunctionMode):
    """Inside, calls with a tensor on the device, or that name it, are computed in shapes alone. `waits`
    counts reads by `file.py:function`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(_is_there(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        first = args[0] if args else None
        if _is_there(first) and isinstance(first, torch.Tensor):
            read = _READS.get(func)
            if (
                read is None
                and func is torch.Tensor.to
                and any(str(leaf) == "cpu" for leaf in leaves if isinstance(leaf, (str, torch.device)))
            ):
                read = _READS[torch.Tensor.cpu]
            if read is not None:
                self._wait()
                return read(first)
            if self._asks_for_a_size(func, args, kwargs):
                self._wait()
        if func in (torch.tensor, torch.as_tensor):  # made on the host first, here as elsewhere
            read = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
            if read:
                self._wait()
                return torch.ones(len(read))
            return on_device(
                func(*args, **{name: value for name, value in kwargs.items() if name != "device"})
            )
        if func is torch.Tensor.to and not isinstance(first, FakeTensor):
            return on_device(
                first, next((leaf for leaf in leaves if isinstance(leaf, torch.dtype)), first.dtype)
            )
        with MODE:
            # of shapes alone PyTorch cannot do the form with an output dtype
            if func is torch.addmm and torch.float32 in args:
                return torch.addmm(args[0], args[1].float(), args[2].float(), out=kwargs["out"])
            result = func(*args, **kwargs)
        # Megatron knows only the names of CUDA's types.
        return result.replace(f"torch.{NAME}", "torch.cuda") if isinstance(result, str) else result

    @staticmethod
    def _asks_for_a_size(func: Any, args: Any, kwargs: Any) -> bool:
        if func in (torch.repeat_interleave, torch.Tensor.repeat_interleave):
            return isinstance(args[1], torch.Tensor) and kwargs.get("output_size") is None
        indices = args[1] if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) else ()
        parts = indices if isinstance(indices, tuple) else (indices,)
        # A mask has as many results as the data says; an index on the CPU is copied over while the host
        # waits.
        masks = any(
            isinstance(part, torch.Tensor)
            and (part.dtype == torch.bool or (part.ndim > 0 and not _is_there(part)))
            for part in parts
        )
        return func in _SIZES or masks

    def _wait(self) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if (
                path.is_relative_to(ROOT / "paw_hpc")
                and path.name != "shim.py"
                and not frame.f_code.co_name.startswith("<")
            ):
                self.waits[f"{path.relative_to(ROOT / 'paw_hpc')}:{frame.f_code.co_name}"] += 1
                return
            frame = frame.f_back  # type: ignore[assignment]
        self.waits["elsewhere"] += 1


def _is_there(value: object) -> bool:
    if isinstance(value, FakeTensor):
        return True
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == NAME
