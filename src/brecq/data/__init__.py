"""Calibration and evaluation data: from disk or from any iterable, checked, in memory."""

from __future__ import annotations

from brecq.data.collect import collect
from brecq.data.crops import random_crops
from brecq.data.dataset import Dataset, check
from brecq.data.images import read_image
from brecq.data.load import Form, iter_data, load_data
from brecq.data.preprocessing import Preprocessing

__all__ = [
    "Dataset",
    "Form",
    "Preprocessing",
    "check",
    "collect",
    "iter_data",
    "load_data",
    "random_crops",
    "read_image",
]
