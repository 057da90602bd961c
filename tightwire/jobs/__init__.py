"""Several jobs on one network: what each does to the others, by how the network is shared. No torch."""

from tightwire.jobs.job import Job, JobsFile, read_jobs
from tightwire.jobs.policies import POLICIES, Policy, policy
from tightwire.jobs.predict import JobOutcome, PolicyOutcome, predict_jobs

__all__ = [
    "POLICIES",
    "Job",
    "JobOutcome",
    "JobsFile",
    "Policy",
    "PolicyOutcome",
    "policy",
    "predict_jobs",
    "read_jobs",
]
