"""What is known of the kinds of Jetson, from NVIDIA's data sheets."""

from __future__ import annotations

__all__ = [
    "DENSE_FP16_TERA_OPS",
    "MEMORY_BANDWIDTH_GB_PER_S",
    "dense_ops_per_s",
    "memory_bandwidth_bytes_per_s",
]

MEMORY_BANDWIDTH_GB_PER_S = {
    "jetson-agx-thor-128gb": 273.0,
    "jetson-agx-orin-64gb": 204.8,
    "jetson-agx-orin-32gb": 204.8,
    "jetson-orin-nx-16gb": 102.4,
    "jetson-orin-nx-8gb": 102.4,
    "jetson-orin-nano-8gb": 68.0,
    "jetson-orin-nano-4gb": 34.0,
    "jetson-agx-xavier-32gb": 136.5,
    "jetson-xavier-nx-16gb": 59.7,
    "jetson-xavier-nx-8gb": 59.7,
}
UNKNOWN_GB_PER_S = 50.0  # a board that is not in the table takes part, with the share of a small one


def memory_bandwidth_bytes_per_s(board: str | None) -> float:
    """Return the peak memory bandwidth of a kind of board: decoding reads every weight once a token."""
    return MEMORY_BANDWIDTH_GB_PER_S.get(board or "", UNKNOWN_GB_PER_S) * 1e9


#: What the GPU's tensor cores give without sparsity at the highest clock: cores x clock x operations a clock. Boards
#: whose rate is not here take the unknown one.
DENSE_FP16_TERA_OPS = {
    "jetson-agx-orin-64gb": 42.5,
    "jetson-agx-orin-32gb": 26.6,
    "jetson-orin-nx-16gb": 15.0,
    "jetson-orin-nx-8gb": 12.5,
    "jetson-orin-nano-8gb": 10.2,
    "jetson-orin-nano-4gb": 5.1,
    "jetson-xavier-nx-16gb": 6.0,
    "jetson-xavier-nx-8gb": 6.0,
}
UNKNOWN_TERA_OPS = 5.0


def dense_ops_per_s(board: str | None) -> float:
    """Return the peak rate of a kind of board's GPU in dense FP16 operations."""
    return DENSE_FP16_TERA_OPS.get(board or "", UNKNOWN_TERA_OPS) * 1e12
