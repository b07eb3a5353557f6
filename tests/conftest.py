"""What all tests share: one thread each, no deadline for property tests, the data folder."""

import matplotlib
import torch
from hypothesis import settings

matplotlib.use("agg")
torch.set_num_threads(1)

# Timing on a shared machine says nothing; the fixed seed makes a failure in CI one that anyone can repeat.
settings.register_profile("smlmtut", deadline=None, derandomize=True)
settings.load_profile("smlmtut")
