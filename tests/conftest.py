"""Settings for all tests: nothing is judged by the clock, and runs are repeatable."""

import torch
from hypothesis import settings

settings.register_profile("tightwire", deadline=None, derandomize=True)
settings.load_profile("tightwire")
torch.set_num_threads(1)  # tests run side by side, and worker threads share the cores
