"""Fast convolution, pooling and their gradients for NumPy arrays on the CPU.

The rooms, from the top; each imports only rooms below it:

    demo  verify  config             python -m fastconv: a CNN on digits, every gradient checked, the set-up
    signal/                          SciPy's names and arguments: correlate2d, convolve2d, correlate, convolve
    prepare                          convolutions with weights packed once
    conv  pool  dense                the public operations: check, plan, allocate, call
    calls  calls_pool                bind a plan, or pooling, to the kernel entry that carries it out
    plan                             problem + CPU -> frozen Plan: which algorithm, why, in which passes
    depthwise                        one channel a group: which algorithm
    bank  pixels  weight_grad        images of one channel, channels last, weight gradients: which algorithm
    blocked                          when output channels in the lanes pay
    winograd_costs                   when Winograd's method pays
    winograd                         how it is cut; its matrices
    passes                           the geometries and blockings that kernels read; the thresholds
    registry                         the table of kernels
    threads  workspace               how many threads, whose scratch memory
    im2col                           the textbook form
    problem_pool                     frozen PoolProblem: geometry, validation, shapes
    problem                          frozen ConvProblem, and the shape algebra that both share
    arrays                           what arrays are accepted
    engine                           which compiled engine runs
    reference  testing               the float64 oracle; gradcheck for any function of arrays
    kernels/                         all Cython: one .pyx a family, micro-kernels in .pxd, simd.h
    _engines/                        the kernels compiled, once for each (isa, dtype)
"""

from fastconv import signal
from fastconv.config import show_config
from fastconv.conv import (
    ConvGradients,
    conv2d,
    conv2d_backward,
    conv2d_input_grad,
    conv2d_weight_grad,
    plan_conv2d,
)
from fastconv.dense import (
    LinearGradients,
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
)
from fastconv.plan import Plan
from fastconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from fastconv.prepare import PreparedConv2d, prepare_conv2d
from fastconv.threads import get_num_threads, set_num_threads, threads
from fastconv.winograd import set_winograd

__version__ = "0.1.0"

__all__ = [
    "ConvGradients",
    "LinearGradients",
    "Plan",
    "PreparedConv2d",
    "avg_pool2d",
    "avg_pool2d_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "get_num_threads",
    "linear",
    "linear_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "plan_conv2d",
    "prepare_conv2d",
    "relu",
    "relu_backward",
    "set_num_threads",
    "set_winograd",
    "show_config",
    "signal",
    "softmax",
    "softmax_backward",
    "threads",
]
