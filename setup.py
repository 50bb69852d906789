"""Builds every kernel once for each engine: one .c file, other flags.

FASTCONV_ENGINES=avx2,avx512 limits a developer's build to some engines (wide: the 64-byte logic in
AVX2 instructions, for tests on machines without AVX-512). FASTCONV_SYMBOLS=1 keeps the symbols.
"""

import contextlib
import copy
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma"]
# Sums of a tile are in registers once the loops over them are unrolled. gcc gives up at 200 instructions:
# tiles of 32 registers would begin and end in memory, and 3 -> 64, 3x3, at 224x224 take 1.0 ms, not 0.8.
UNROLL = "--param=max-completely-peeled-insns=600"
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512", UNROLL]

# One region for the register allocator. With several, gcc 12 sends sums of tiles that need all 16 registers
# through the stack: 256 channels in 32 groups, 3x3, at 28x28 take 0.43 ms, not 0.33.
ALLOCATE = "-fira-region=one"

# Without these passes of gcc 12 a build takes 0.85 of the time, and depthwise gradients up to 1.1 of theirs:
# no matter on a CPU without AVX2.
HASTY = ["-fno-split-loops", "-fno-gcse", "-fno-gcse-after-reload"]

# engine -> compiler flags; fastconv.engine.ENGINES says which CPU each needs.
ENGINE_FLAGS: dict[str, list[str]] = {"baseline": HASTY if X86 else []}
if X86:
    ENGINE_FLAGS |= {"avx2": [*AVX2, ALLOCATE], "avx512": AVX512, "wide": [*AVX2, "-DFC_WIDE"]}
DEFAULT_ENGINES = [name for name in ENGINE_FLAGS if name != "wide"]
MAY_BE_UNKNOWN = {*HASTY, ALLOCATE}  # to clang
KEEP_SYMBOLS = bool(os.environ.get("FASTCONV_SYMBOLS"))  # for profilers and disassemblers
SCALARS = {"f32": "float", "f64": "double"}

# The straight-line vectoriser would route the micro-kernel's accumulators through the stack.
OPTIMISE = [
    "-O3",
    "-g0",
    "-fno-tree-slp-vectorize",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "binding": False,
    "freethreading_compatible": True,
}


def chosen_engines() -> list[str]:
    wanted = os.environ.get("FASTCONV_ENGINES", "").replace(",", " ").split() or DEFAULT_ENGINES
    unknown = set(wanted) - set(ENGINE_FLAGS)
    if unknown:
        sys.exit(f"FASTCONV_ENGINES: no engine {sorted(unknown)}; there are {list(ENGINE_FLAGS)}")
    return wanted


def extensions() -> list[Extension]:
    """Cythonizes each kernel once, then clones its extension for every engine and scalar type."""
    sources = sorted(Path("fastconv/kernels").glob("*.pyx"))
    once = [
        Extension(
            f"fastconv.kernels.{source.stem}",
            [str(source)],
            depends=[str(path) for path in sorted(Path("fastconv/kernels").glob("*.*[hd]"))],
            include_dirs=["fastconv/kernels", numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        )
        for source in sources
    ]
    cores = os.cpu_count()
    kernels = cythonize(once, nthreads=cores, compiler_directives=DIRECTIVES, build_dir="build/cython")
    clones = []
    # Long files first, so that no compiler works alone in the end.
    for kernel in sorted(kernels, key=lambda kernel: Path(kernel.sources[0]).stat().st_size, reverse=True):
        for engine in chosen_engines():
            for suffix, scalar in SCALARS.items():
                clone = copy.deepcopy(kernel)
                stem = kernel.name.rpartition(".")[2]
                clone.name = clone._full_name = f"fastconv._engines.{engine}_{suffix}.{stem}"
                clone.extra_compile_args = [*OPTIMISE, *ENGINE_FLAGS[engine], f"-DFC_REAL={scalar}"]
                clones.append(clone)
    return clones


class BuildEngines(build_ext):
    """One object folder for each engine, OpenMP where the compiler has it, and clear failures."""

    def build_extensions(self) -> None:
        self.check_compiler()
        openmp = ["-fopenmp"] if self.compiles_and_links(["-fopenmp"]) else []
        if not openmp:
            print(
                "fastconv: this compiler has no OpenMP (-fopenmp): the kernels will run on one thread. "
                "For more, install gcc, or clang with libomp, and build again.",
                file=sys.stderr,
            )
        unknown = {flag for flag in MAY_BE_UNKNOWN if not self.compiles_and_links([flag])}
        strip = ["-Wl,-s"] if sys.platform.startswith("linux") and not KEEP_SYMBOLS else []
        for extension in self.extensions:
            known = [flag for flag in extension.extra_compile_args if flag not in unknown]
            extension.extra_compile_args = [*known, *openmp]
            extension.extra_link_args = [*openmp, *strip]
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def check_compiler(self) -> None:
        if not self.compiles_and_links([]):
            sys.exit(
                "fastconv: cannot compile C. Building needs a C compiler and Python's headers "
                "(Debian and Ubuntu: apt install gcc python3-dev; macOS: xcode-select --install)."
            )

    def compiles_and_links(self, flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_preargs=flags)
                self.compiler.link_shared_object(objects, str(Path(folder, "probe.so")), extra_preargs=flags)
            except (CCompilerError, CompileError, ExecError, LinkError, PlatformError):
                return False
        return True

    def run(self) -> None:
        """Builds; and leaves the engines in the checkout too, where `python -m fastconv` looks first."""
        super().run()
        if not self.inplace:
            for extension in self.extensions:
                built = Path(self.get_ext_fullpath(extension.name))
                folder = Path(*extension.name.split(".")[:-1])
                with contextlib.suppress(OSError):  # a read-only checkout is no reason to fail
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(built, folder / built.name)

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            Path(*extension.name.split(".")[:-1]).mkdir(parents=True, exist_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        builder = copy.copy(self)
        builder.build_temp = str(Path(self.build_temp, ext.name.split(".")[-2]))
        build_ext.build_extension(builder, ext)


if __name__ == "__main__":  # processes that cythonize may import this file
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildEngines})
