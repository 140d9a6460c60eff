"""What a server does with published weights, without an engine: takes the bytes by each path and copies them
into parameters of its own.

    python benchmarks/receiver.py MEGABYTES KEY_FILE        prints its address; who calls must know the key

It speaks the part of SGLang's interface that a publication uses, so that the time of `benchmarks/rollout.py`
is that of the real publisher and its transport, at sizes for which no engine would fit on a small machine.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hmac
import json
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from aiohttp import web
from safetensors import safe_open
from torch.distributed.distributed_c10d import (
    Backend,
    GroupName,
    PrefixStore,
    _new_process_group_helper,
    _world,
)

from paw_hpc.rollout.sglang.publish.checks import cpu_checksum
from paw_hpc.system.keys import bearer, read_key

ROWS = 4 << 20
"""Elements of one tensor: 16 MiB of float32."""


def tensors(megabytes: int) -> dict[str, torch.Tensor]:
    """As many bytes as a model of this size, in tensors as large as a small model's; no two are alike."""
    random = torch.randn((1024, ROWS // 1024), generator=torch.Generator().manual_seed(0))
    return {f"model.layers.{i}.mlp.down_proj.weight": random + i for i in range(max(1, megabytes // 16))}


class Receiver:
    """The endpoints, by path."""

    def __init__(self, megabytes: int, key: str):
        self._carried = bearer(key)["Authorization"]
        self.parameters = {
            f"model.layers.{i}.mlp.down_proj.weight": torch.zeros(1024, ROWS // 1024)
            for i in range(max(1, megabytes // 16))
        }
        self.version = "none"
        self.groups: dict[str, Any] = {}

    def load(self, named: Any) -> None:
        for name, tensor in named:
            self.parameters[name].copy_(tensor)

    def init_weights_update_group(self, order: dict[str, Any]) -> None:
        size, name = order["world_size"], order["group_name"]
        store = PrefixStore(name, dist.TCPStore(order["master_address"], order["master_port"], size, False))
        patience = datetime.timedelta(minutes=10)
        group, _ = _new_process_group_helper(
            size,
            order["rank_offset"],
            [],
            Backend(order["backend"]),
            store,
            group_name=GroupName(name),
            timeout=patience,
        )
        _world.pg_group_ranks[group] = {i: i for i in range(size)}
        self.groups[name] = group

    def destroy_weights_update_group(self, order: dict[str, Any]) -> None:
        dist.destroy_process_group(self.groups.pop(order["group_name"]))

    def update_weights_from_distributed(self, order: dict[str, Any]) -> None:
        kinds = [getattr(torch, d) for d in order["dtypes"]]
        sizes = [torch.Size(s).numel() * k.itemsize for s, k in zip(order["shapes"], kinds, strict=True)]
        flat = torch.empty(sum(sizes), dtype=torch.uint8)
        dist.broadcast(flat, src=0, group=self.groups[order["group_name"]])
        pieces = flat.split(sizes)
        self.load(
            (n, p.view(k).view(s))
            for n, p, k, s in zip(order["names"], pieces, kinds, order["shapes"], strict=True)
        )

    def update_weights_from_tensor(self, order: dict[str, Any]) -> None:
        self.load(pickle.loads(base64.b64decode(order["serialized_named_tensors"][0])))

    def update_weights_from_disk(self, order: dict[str, Any]) -> None:
        for file in sorted(Path(order["model_path"]).glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self.load((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118 (not a mapping)

    def weights_checker(self, order: dict[str, Any]) -> dict[str, Any]:
        """Of the tensors that are not to be left out, which is told by substrings of their names, as to a
        server."""
        skipped = order["skip_tensor_list"]
        wanted = [name for name in self.parameters if not any(part in name for part in skipped)]
        return {"ranks": [{"checksums": {name: cpu_checksum(self.parameters[name]) for name in wanted}}]}

    async def answer(self, request: web.Request) -> web.Response:
        name = request.path.strip("/")
        # it unpickles what it is sent
        if not hmac.compare_digest(request.headers.get("Authorization", ""), self._carried):
            return web.Response(status=401)
        order = await request.json() if request.can_read_body else {}
        found = await asyncio.to_thread(getattr(self, name), order) if hasattr(self, name) else None
        self.version = order.get("weight_version") or self.version
        known = {"model_info": {"weight_version": self.version}, "server_info": {}}
        return web.Response(
            text=json.dumps({"success": True, **(found or known.get(name, {}))}),
            content_type="application/json",
        )


def main() -> None:
    torch.set_num_threads(1)
    receiver = Receiver(int(sys.argv[1]), read_key(sys.argv[2], "KEY_FILE"))
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path}", receiver.answer)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    web.run_app(application, sock=listening, print=None, access_log=None)


if __name__ == "__main__":
    main()
