"""The C library in typed Python: the only folder that touches cffi.

Owns the pointers of models, sessions and samplers, the way from a status to an exception, and
callbacks that never raise into C. Refuses tokenizing and policy: ``model.py`` has those. The
contract of every call stands in ``native/include/awq_edge.h``.

A C object lives as long as anything refers to its pointer. Closing one here only drops a
reference: a call that another thread has begun holds its own until it returns.
"""

from awq_edge._native.library import (
    HEADER_NAME,
    LIBRARY_NAME,
    Progress,
    declarations,
    header_path,
    library_path,
    parsed_declarations,
)
from awq_edge._native.machine import (
    Gpu,
    SelftestResult,
    gpu,
    gpu_read_bandwidth,
    gpu_selftest,
    kernel_tables,
    read_bandwidth,
    selftest,
)
from awq_edge._native.metadata import Scalar, Value
from awq_edge._native.model import (
    GpuMemoryNeed,
    MemoryNeed,
    ModelInfo,
    NativeModel,
    TensorInfo,
    VisionInfo,
)
from awq_edge._native.options import (
    ATTENTIONS,
    DEVICES,
    KV_TYPES,
    attention_number,
    device_number,
    gpu_layer_number,
    kv_type_number,
)
from awq_edge._native.sampler import NativeSampler
from awq_edge._native.session import NativeSession, Reading, evaluate_together

__all__ = [
    "ATTENTIONS",
    "DEVICES",
    "HEADER_NAME",
    "KV_TYPES",
    "LIBRARY_NAME",
    "Gpu",
    "GpuMemoryNeed",
    "MemoryNeed",
    "ModelInfo",
    "NativeModel",
    "NativeSampler",
    "NativeSession",
    "Progress",
    "Reading",
    "Scalar",
    "SelftestResult",
    "TensorInfo",
    "Value",
    "VisionInfo",
    "attention_number",
    "declarations",
    "device_number",
    "evaluate_together",
    "gpu",
    "gpu_layer_number",
    "gpu_read_bandwidth",
    "gpu_selftest",
    "header_path",
    "kernel_tables",
    "kv_type_number",
    "library_path",
    "parsed_declarations",
    "read_bandwidth",
    "selftest",
]
