"""The table of suites. A suite is one line: network -> the kinds of its layers (Layer.kind)."""

from __future__ import annotations

import re

from bench.shapes import Layer, load_network

SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "gemm": {
        "resnet50": ("1x1", "strided", "first"),
        "vgg16": ("1x1", "strided", "first"),
        "mobilenetv2": ("1x1",),
    },
    "winograd": {"resnet50": ("3x3",), "vgg16": ("3x3",), "unet": ("3x3",)},
    "depthwise": {
        "mobilenetv2": ("depthwise",),
        "mobilenetv3_large": ("depthwise",),
        "efficientnet_b0": ("depthwise",),
        "convnext_t": ("depthwise",),
    },
    "first": dict.fromkeys(("resnet50", "vgg16", "mobilenetv2", "convnext_t"), ("first",)),
    "grouped": {"resnext50_32x4d": ("grouped",), "shufflenet": ("grouped",)},
    "filters": {"filters": ("first",)},
    "pools": {"pools": ("max", "avg")},
    "argmax_pools": {"pools": ("argmax",)},
}


_PREPACKED = ("torch_nchw", "torch_channels_last", "onnxruntime", "openvino", "ncnn")
POOL_PEERS = (
    "pool_torch_nchw",
    "pool_torch_channels_last",
    "pool_onnxruntime",
    "pool_fastconv",
    "pool_fastconv_nhwc",
)

# Suites whose rivals are not those of the others.
PEERS_OF_SUITE = {
    "depthwise": (*_PREPACKED, "fastconv_plain", "fastconv_prepared", "fastconv_prepared_nhwc"),
    "first": (*_PREPACKED, "fastconv_plain", "fastconv_prepared", "fastconv_prepared_nhwc"),
    "winograd": (*_PREPACKED, "mnn", "fastconv_plain", "fastconv_prepared"),
    "filters": (
        "fastconv_signal",
        "opencv",
        "scipy_correlate2d",
        "scipy_fftconvolve",
        "scipy_oaconvolve",
        "scipy_ndimage",
    ),
    "pools": POOL_PEERS,
    "argmax_pools": tuple(name for name in POOL_PEERS if name != "pool_onnxruntime"),
}

# Suites where some compute otherwise than the definition says: errors stand beside speeds.
WITH_ERRORS = ("winograd",)

# Suites whose tables give GB/s in place of GFLOP/s.
BOUND_BY_MEMORY = ("pools", "argmax_pools")

# `bench quick`: one layer of each character, from the suite that is asked for.
QUICK_LAYERS = (
    r"conv1$|conv1_3_64|reduce_256_64|expand_256_1024|stride2$|project_96_24|last_320"
    r"|resnet50_stem|avg_densenet121_56"
)


def layers_of(suite: str, pattern: str = "") -> list[Layer]:
    """The suite's layers whose full name matches `pattern`, each geometry once."""
    distinct: dict[tuple[int, ...], Layer] = {}
    for network, kinds in SUITES[suite].items():
        for layer in load_network(network):
            if layer.kind in kinds and re.search(pattern, layer.full_name):
                distinct.setdefault(layer.geometry, layer)
    return list(distinct.values())
