"""Where a launched run computes: the nodes of a job, and the image that its processes run in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from paw_hpc.recipe.section import Section


class ContainerSection(Section):
    """The image that a launched job's processes run in (`cluster.container`). None: the environment that `paw
    launch` was started from."""

    image: str
    """pyxis: what --container-image takes (a .sqsh file, docker://...); apptainer: a .sif file. All nodes
    must reach it."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What starts the image on a node: srun with the pyxis plugin, or apptainer."""
    mounts: tuple[Annotated[str, Field(pattern=r"^[^:,]+(:[^:,]+){0,2}$")], ...] = ()
    """HOST:CONTAINER[:FLAGS]; the run directory and the working directory are always mounted where they
    are."""
    python: str = "/opt/paw/.venv/bin/python"
    """Interpreter inside the image (see containers/)."""
    arguments: tuple[str, ...] = ()
    """Further arguments of srun (pyxis) or of `apptainer exec`."""


class ClusterSection(Section):
    """Where and how `paw launch` runs a recipe. It changes where a run computes, not what. Keys may also
    stand in ~/.config/paw/cluster.yaml, which wins over the recipe, and on the command line, which wins over
    both."""

    account: str | None = None
    """Whom the job is charged to."""
    partition: str | None = None
    """Partition, or several with commas between them; none: the cluster's default."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, as Slurm writes them."""
    exclude: str | None = None
    """Nodes that the job must not get, as Slurm writes them: node[3-5]."""
    time_min: PositiveInt = 720
    """Time limit of one job, in minutes. Longer runs requeue themselves and go on."""
    warn_s: PositiveInt = 300
    """How long before the time limit the job is told to stop: one update and one checkpoint must fit."""
    trainer_nodes: PositiveInt = 1
    """Nodes that train."""
    rollout_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that only serve (rollout.engine: sglang). 0: servers run on the trainer's nodes."""
    retriever_node: bool = False
    """One more node, which serves search QA's retrieval (env.search.retriever: http)."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """0: the nodes are used as CPU nodes."""
    gpu: Literal["A100-40", "A100", "H100", "H200", "B200", "L40S"] = "H100"
    """What `paw plan` computes with."""
    trainer_gpus: PositiveInt | None = None
    """One node for both roles: this many GPUs train, the others serve. None: all of a trainer node's GPUs
    train."""
    processes_per_node: PositiveInt | None = None
    """Trainer processes on a node; none: one per training GPU, or one on a CPU node."""
    servers_per_node: PositiveInt | None = None
    """Servers on a rollout node; none: as many as its GPUs allow (rollout.fleet.tensor_parallel each), or one
    on a CPU node."""
    cpus_per_node: PositiveInt = 8
    """Cores of each node."""
    mem_gb_per_node: Annotated[int, Field(ge=0)] | None = None
    """0: all of the node's memory; none: the partition's default."""
    exclusive: bool = False
    """Take whole nodes."""
    attempts: PositiveInt = 3
    """Attempts in a row that may end without a new checkpoint before the job gives up."""
    setup: tuple[str, ...] = ()
    """Shell lines that the batch script runs first, such as `module load cuda`; all processes inherit the
    environment."""
    environment: dict[str, str] = Field(default={})
    """Further environment variables of all processes."""
    interface: str | None = None
    """Network interface of gloo and NCCL; none: the one that reaches the other nodes."""
    sbatch: dict[str, str | bool | int] = Field(default={})
    """Further #SBATCH flags, by their long names: {reservation: friday, comment: paw}."""
    srun: tuple[str, ...] = ()
    """Further arguments of every srun."""
    container: ContainerSection | None = None

    @field_validator("sbatch")
    @classmethod
    def _free_flags(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in _OWN_FLAGS:
                raise ValueError(f"{name}: the launcher sets this flag{_OWN_FLAGS[name]}")
        return value

    @model_validator(mode="after")
    def _layout(self) -> ClusterSection:
        if self.warn_s >= self.time_min * 60:
            raise ValueError(
                f"warn_s: {self.warn_s} s before the end of a job of {self.time_min} minutes is before its "
                "beginning; lower it"
            )
        if self.trainer_gpus is not None and self.trainer_gpus > self.gpus_per_node:
            raise ValueError(
                f"trainer_gpus: {self.trainer_gpus} of a node's {self.gpus_per_node} GPUs (gpus_per_node)"
            )
        return self


_OWN_FLAGS = {
    "nodes": "; set trainer_nodes and rollout_nodes",
    "ntasks": "",
    "ntasks-per-node": "",
    "gpus-per-node": "; set gpus_per_node",
    "cpus-per-task": "; set cpus_per_node",
    "mem": "; set mem_gb_per_node",
    "time": "; set time_min",
    "signal": "; set warn_s",
    "requeue": "",
    "no-requeue": "; set attempts: 1",
    "open-mode": "",
    "output": "",
    "error": "",
    "array": "; see `paw launch --array`",
    "partition": "; set cluster.partition",
    "account": "; set cluster.account",
    "qos": "; set cluster.qos",
    "constraint": "; set cluster.constraint",
    "exclude": "; set cluster.exclude",
    "exclusive": "; set cluster.exclusive",
}
"""sbatch's flags that have keys of their own, or none, and which."""
