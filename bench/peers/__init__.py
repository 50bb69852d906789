"""The table of peers. To add one: a row here, and peers/<name>.py beside it.

The adapter is a module with three functions, imported in the peer's own worker process only:

    version() -> str                       what is compared, for the record
    supports(direction) -> bool            forward, input_grad, weight_grad
    prepare(case, arrays) -> callable      without arguments, returns what numpy.asarray takes

and, if its output may be what the others are held against, a fourth:

    exact(case, arrays) -> array           the result in float64

Whatever `prepare` does (converting layouts, packing weights, building a session) is not timed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    `limits` holds, for an instruction set, the environment variables that cap the peer to it.
    `quiet_after` is for how many seconds its thread pool keeps spinning once it has answered, with
    a margin: until then it would take a core from the next peer. Measured with two threads on a
    Xeon (family 6, model 167): libgomp 4 ms, ONNX Runtime 29 ms, OpenBLAS 106 ms of CPU time.
    """

    name: str
    label: str
    package: str
    limits: dict[str, dict[str, str]] = field(default_factory=dict)
    quiet_after: float = 0.01
    by_default: bool = True

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


TORCH_LIMITS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}
FASTCONV_LIMITS = {isa: {"FASTCONV_ISA": isa} for isa in ("baseline", "avx2", "avx512")}

# SciPy's wheels have one path for every CPU: there is nothing to cap.
SAME_EVERYWHERE: dict[str, dict[str, str]] = {isa: {} for isa in ("baseline", "avx2", "avx512")}

# The first peer that is installed gives the output that the others are verified against.
ALL_PEERS = (
    Peer("torch_nchw", "PyTorch NCHW", "torch", TORCH_LIMITS),
    Peer("torch_channels_last", "PyTorch channels_last", "torch", TORCH_LIMITS),
    Peer("onnxruntime", "ONNX Runtime", "onnxruntime"),
    Peer("openvino", "OpenVINO", "openvino", quiet_after=0.05, by_default=False),
    Peer("ncnn", "ncnn", "ncnn", quiet_after=0.05, by_default=False),
    Peer("mnn", "MNN", "MNN", quiet_after=0.05, by_default=False),
    Peer("fastconv_plain", "fastconv", "fastconv", FASTCONV_LIMITS),
    Peer("fastconv_prepared", "fastconv prepared", "fastconv", FASTCONV_LIMITS),
    Peer("fastconv_prepared_nhwc", "fastconv prepared, NHWC", "fastconv", FASTCONV_LIMITS, by_default=False),
    Peer("numpy_im2col", "NumPy im2col", "numpy", quiet_after=0.25, by_default=False),
    Peer("fastconv_signal", "fastconv.signal", "fastconv", FASTCONV_LIMITS, by_default=False),
    Peer("opencv", "OpenCV filter2D", "cv2", by_default=False),
    Peer("scipy_correlate2d", "SciPy correlate2d", "scipy", SAME_EVERYWHERE, by_default=False),
    Peer("scipy_fftconvolve", "SciPy fftconvolve", "scipy", SAME_EVERYWHERE, by_default=False),
    Peer("scipy_oaconvolve", "SciPy oaconvolve", "scipy", SAME_EVERYWHERE, by_default=False),
    Peer("scipy_ndimage", "SciPy ndimage", "scipy", SAME_EVERYWHERE, by_default=False),
    Peer("pool_torch_nchw", "PyTorch NCHW", "torch", TORCH_LIMITS, by_default=False),
    Peer("pool_torch_channels_last", "PyTorch channels_last", "torch", TORCH_LIMITS, by_default=False),
    Peer("pool_onnxruntime", "ONNX Runtime", "onnxruntime", quiet_after=0.06, by_default=False),
    Peer("pool_fastconv", "fastconv NCHW", "fastconv", FASTCONV_LIMITS, by_default=False),
    Peer("pool_fastconv_nhwc", "fastconv NHWC", "fastconv", FASTCONV_LIMITS, by_default=False),
)
PEERS = {peer.name: peer for peer in ALL_PEERS}
