"""A stand-in for EasyEdit, written for the tests from what docs/easyedit.md says of it: dispatch by name, three ways of
undoing an edit, scoring, and what its import does to the process."""

import logging
import os
import random

import numpy as np
import torch

from .editors.editor import BaseEditor

__all__ = ["BaseEditor"]

random.seed(42)
np.random.seed(42)  # noqa: NPY002
torch.manual_seed(42)
logging.basicConfig(level=logging.INFO)
logging.getLogger().setLevel(logging.INFO)
logging.getLogger().addHandler(logging.NullHandler())
os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
