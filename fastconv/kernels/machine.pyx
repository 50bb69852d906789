"""What the machine can do at best, the roofline that kernels are measured against."""

cimport numpy as cnp
from cython.parallel cimport prange

from fastconv.kernels.simd cimport MR, NR, SHIFTS, VL, real, vec, vfma, vload, vset1, vstore, vsum


cdef extern from "simd.h" nogil:
    bint cpu_has_avx2() noexcept
    bint cpu_has_avx512() noexcept
    int openmp_version() noexcept


def cpu_features():
    """Names of the instruction sets beyond the baseline that this CPU and its system can run."""
    return frozenset(
        name for name, present in (("avx2", cpu_has_avx2()), ("avx512", cpu_has_avx512())) if present
    )


def openmp():
    """The OpenMP standard's date (201511 for 4.5) that the kernels were compiled with, 0 without OpenMP."""
    return openmp_version()


def tile():
    """(MR, NR, VL): rows and columns of the register tile, elements in a vector."""
    return MR, NR, VL


def has_halves():
    """Are vectors loaded in halves from two places at the cost of one instruction more?"""
    return bool(SHIFTS)


cdef enum:
    CHAINS = 12  # enough to hide the latency of two FMA pipes (4 cycles each), few enough for 16 registers


cdef real fma_chains(Py_ssize_t iterations) noexcept nogil:
    cdef vec[CHAINS] chain
    cdef vec factor = vset1(<real> 0.5), term = vset1(<real> 1)
    cdef int j
    cdef Py_ssize_t _i
    for j in range(CHAINS):
        chain[j] = vset1(<real> j)
    for _i in range(iterations):
        for j in range(CHAINS):
            chain[j] = vfma(chain[j], factor, term)
    for j in range(1, CHAINS):
        chain[0] = vfma(chain[j], factor, chain[0])
    return vsum(chain[0])


def fma_peak(int threads, Py_ssize_t iterations):
    """Runs independent chains of multiply-adds on each thread; returns the floating-point operations done."""
    cdef int _thread
    cdef real total = 0
    for _thread in prange(threads, num_threads=threads, nogil=True, schedule="static", chunksize=1):
        total += fma_chains(iterations)
    if total != total:
        raise ArithmeticError("the multiply-add chains diverged")
    return 2 * CHAINS * VL * iterations * threads


cdef enum:
    BLOCK = 1024  # elements copied at a stretch


cdef void copy_block(real* to, const real* source) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(BLOCK // VL):
        vstore(to + i * VL, vload(source + i * VL))


def copy(int threads, cnp.ndarray out, cnp.ndarray input):
    """out[...] = input[...], both C-contiguous of one size: the copy bandwidth of `threads` threads."""
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef const real* source = <const real*> cnp.PyArray_DATA(input)
    cdef Py_ssize_t count = cnp.PyArray_SIZE(out), blocks = count // BLOCK, block, i
    for block in prange(blocks, num_threads=threads, nogil=True, schedule="static"):
        copy_block(to + block * BLOCK, source + block * BLOCK)
    for i in range(blocks * BLOCK, count):
        to[i] = source[i]
