"""What holds for every test."""

import os

import torch

# Without a GPU, Triton's kernels run on the CPU, one operation after the other. It must stand here before anything
# imports Triton. Where there is a GPU they are compiled for it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The tensors of the tests are small: a second thread costs more than it brings, and a machine that is busy with
# something else makes the threads wait for each other. A test that is about threads sets their number itself.
torch.set_num_threads(1)
