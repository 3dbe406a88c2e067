"""Tests run on one thread: results depend on the number, and several tests run side by side."""

import torch

torch.set_num_threads(1)
