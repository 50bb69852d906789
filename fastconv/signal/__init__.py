"""Correlation and convolution with SciPy's names and arguments.

images       correlate2d, convolve2d: two axes, boundaries, batches of images
arrays       correlate, convolve: any number of axes, method "auto", "direct" or "fft"
numbers      any numbers by floating-point correlations, and the choice of a method
overlap_save through Fourier transforms, tile by tile
direct       by the compiled kernels
window       modes, boundaries, and the terms that are not zero
"""

from fastconv.signal.arrays import convolve, correlate
from fastconv.signal.images import convolve2d, correlate2d

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d"]
