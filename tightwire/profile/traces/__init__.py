"""PyTorch profiler traces (`export_chrome_trace`, `record_shapes=True`): profiles of one, clusters of all ranks'."""

from tightwire.profile.traces.chakra import cluster_of_chakra
from tightwire.profile.traces.collectives import cluster_of_traces
from tightwire.profile.traces.steps import profile_of_trace

__all__ = ["cluster_of_chakra", "cluster_of_traces", "profile_of_trace"]
