"""Builds the package and its kernels; everything declarative stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

sources = sorted(str(p) for folder in ("binding", "cpu") for p in Path("kernels", folder).glob("*.cpp"))
flags = ["-O3", "-Wall", "-Wno-maybe-uninitialized", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fopenmp"]
setup(
    ext_modules=[CppExtension("fairseq_g2lstm._kernels", sources, extra_compile_args=flags)],
    cmdclass={"build_ext": BuildExtension},
)
