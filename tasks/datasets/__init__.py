"""Data sets as tensors: torchvision's by name, a user's own files and functions, frozen features of either.

Every loader ends in `finish`, which resizes, splits, normalises and digests. torchvision, scikit-learn, pyarrow and PIL
are imported only when needed.
"""

from __future__ import annotations

from tasks.datasets.dataset import Dataset, Facts
from tasks.datasets.errors import DataError
from tasks.datasets.from_arrays import arrays, function, npz
from tasks.datasets.from_folder import folder
from tasks.datasets.from_table import csv, parquet
from tasks.datasets.named import load

__all__ = ["DataError", "Dataset", "Facts", "arrays", "csv", "folder", "function", "load", "npz", "parquet"]
