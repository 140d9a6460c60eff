"""One thread per test process: tensors here are small, and threads that wait for each other on a shared machine cost far more than they save."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
