"""A pytest plugin: puts the library that G2LSTM_CUDA_ON_HOST names in the place of the compiled operators.

It holds the CUDA operators for CPU tensors (cuda_on_host.cpp), so that the operators' tests and test_cuda.py run on
them where there is no GPU: `G2LSTM_CUDA_ON_HOST=library.so PYTHONPATH=tests python -m pytest -p cuda_on_host ...`.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

MODULE = "fairseq_g2lstm._kernels"
VARIABLE = "G2LSTM_CUDA_ON_HOST"


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_file_location(name, os.environ[VARIABLE]) if name == MODULE else None


if VARIABLE in os.environ and MODULE not in sys.modules:
    sys.meta_path.insert(0, _Finder())
