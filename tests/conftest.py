"""What holds for every test."""

import torch

# The tensors of the tests are small: a second thread costs more than it brings, and a machine that is busy with
# something else makes the threads wait for each other. A test that is about threads sets their number itself.
torch.set_num_threads(1)
