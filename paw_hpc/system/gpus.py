"""What the GPUs of clusters can do, from NVIDIA's data sheets."""

GIB = 2**30

GPU_BYTES = {
    "A100-40": 40 * GIB,
    "A100": 80 * GIB,
    "H100": 80 * GIB,
    "H200": 141 * 10**9,
    "B200": 180 * 10**9,
    "L40S": 48 * GIB,
}
"""Memory of a device."""
BYTES_PER_S = {
    "A100-40": 1.56e12,
    "A100": 2.04e12,
    "H100": 3.35e12,
    "H200": 4.8e12,
    "B200": 8.0e12,
    "L40S": 0.86e12,
}
"""Memory bandwidth of a device."""
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
}
"""Dense bfloat16 FLOP/s of a device, by a part of its name."""
