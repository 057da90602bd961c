"""torchtitan, DiLoCo between two groups of FSDP:

torchrun --nproc-per-node 8 -m torchtitan.train --module examples.with_torchtitan --config two_sites
"""

from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from tightwire.integrations.torchtitan import between_groups


def two_sites() -> Trainer.Config:
    config = llama3_debugmodel()
    config.model_spec = between_groups(config.model_spec, "diloco:16/allreduce/int8+ef")
    config.parallelism.data_parallel_replicate_degree = 2
    config.training.steps = 160  # whole rounds
    return config
