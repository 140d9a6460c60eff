"""Typed, strict, composable configuration: one YAML file with an optional `base:`, overridden by dotted
paths.

Every key is declared here with its unit and meaning. Unknown keys, wrong types and impossible combinations
are refused at load, with the key's path and what would be right.

    experiment.py  the whole recipe (`name`, `seed`, `eval`, ...), and which combinations are refused
    env.py         `env`, with the names of tasks, question sets and panels
    policy.py      `model`, `warm_start`, `optimizer`, `policy`, `megatron`
    rollout.py     `rollout`, with its `fleet` and `publish`
    objective.py   `algorithm`, `wm`
    cluster.py     `cluster`
    section.py     what all sections have in common
    loading.py     files, bases, overrides, dumps, and what is said of a refused recipe
    shipped.py     where the recipes that come with the package are
"""

from paw_hpc.recipe.cluster import ClusterSection, ContainerSection
from paw_hpc.recipe.env import (
    IN_DOMAIN_SETS,
    QUESTION_SETS,
    TASK_TYPES,
    EnvSection,
    QuestionSet,
    SearchSection,
    TaskType,
    WebshopSection,
    panels_of,
    split_panel_name,
)
from paw_hpc.recipe.experiment import (
    PROTOCOLS,
    CheckpointSection,
    EpisodesSection,
    EvalSection,
    ProtocolName,
    Recipe,
)
from paw_hpc.recipe.loading import dump_recipe, load_recipe, parse_recipe, read_yaml
from paw_hpc.recipe.objective import AlgorithmSection, WorldModelSection
from paw_hpc.recipe.policy import (
    FETCHED_POLICIES,
    SHIPPED_POLICIES,
    MegatronSection,
    ModelSection,
    OptimizerSection,
    PolicySection,
    TinyModel,
    WarmStartSection,
    policy_folder,
)
from paw_hpc.recipe.rollout import FleetSection, PublishSection, RolloutSection
from paw_hpc.recipe.section import Fraction, NonNegative, Section

__all__ = [
    "FETCHED_POLICIES",
    "IN_DOMAIN_SETS",
    "PROTOCOLS",
    "QUESTION_SETS",
    "SHIPPED_POLICIES",
    "TASK_TYPES",
    "AlgorithmSection",
    "CheckpointSection",
    "ClusterSection",
    "ContainerSection",
    "EnvSection",
    "EpisodesSection",
    "EvalSection",
    "FleetSection",
    "Fraction",
    "MegatronSection",
    "ModelSection",
    "NonNegative",
    "OptimizerSection",
    "PolicySection",
    "ProtocolName",
    "PublishSection",
    "QuestionSet",
    "Recipe",
    "RolloutSection",
    "SearchSection",
    "Section",
    "TaskType",
    "TinyModel",
    "WarmStartSection",
    "WebshopSection",
    "WorldModelSection",
    "dump_recipe",
    "load_recipe",
    "panels_of",
    "parse_recipe",
    "policy_folder",
    "read_yaml",
    "split_panel_name",
]
