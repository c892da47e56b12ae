"""What a profiler is to look at: training passes of one layer by one of its CUDA kernels.

    ncu --csv --log-file profile.csv python -m benchmarks.profiled steps|persistent [T,B,I,H ...]
"""

import sys

import torch

from benchmarks.peers import environment
from fairseq_g2lstm import G2LSTM

SHAPES = ("30,128,512,512", "70,20,256,256")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNELS = ("steps", "persistent")
FEW_STEPS = 2  # of kernels that are launched at every step


def run_passes(kernel: str, shapes: list[str], device: str, n_passes: int = 2) -> int:
    """Runs forward and backward passes at every shape, in every dtype; of a kernel that is launched at every step, a
    few steps.

    Args:
        kernel: of KERNELS.
        shapes: of (T, B, I, H).
        device: "cuda", or "cpu" to see that it works.
        n_passes: of each.

    Returns:
        The number of passes.
    """
    count = 0
    for shape in shapes:
        n_steps, n_rows, n_inputs, n_units = map(int, shape.split(","))
        for dtype in DTYPES:
            torch.manual_seed(1)
            lstm = G2LSTM(n_inputs, n_units, device=device, dtype=dtype).train()
            x = torch.randn(n_steps, n_rows, n_inputs, device=device, dtype=dtype, requires_grad=True)
            given = x[:FEW_STEPS] if kernel == "steps" else x
            with environment(G2LSTM_CUDA_LAYER=kernel):
                for _ in range(n_passes):
                    lstm(given)[0].float().sum().backward()
                    count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return count


if __name__ == "__main__":
    where = "cuda" if torch.cuda.is_available() else "cpu"
    if len(sys.argv) < 2 or sys.argv[1] not in KERNELS:
        sys.exit(f"usage: python -m benchmarks.profiled {'|'.join(KERNELS)} [T,B,I,H ...]")
    print(f"{run_passes(sys.argv[1], sys.argv[2:] or list(SHAPES), where)} passes on {where}")
