"""What has to be decided before anything heavy is imported, whichever tests run.

One thread per test process: tensors here are small, and threads that wait for each other on a shared machine cost far more than they save.
And without a GPU the Triton kernels run in Triton's interpreter, which must be asked for before any library imports Triton.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import torch

torch.set_num_threads(1)
