"""What distributed training needs beyond fairseq's own."""

import os

import torch


def check_ranks_are_joined() -> None:
    """Stops where torchrun started several processes that fairseq has not joined into one group.

    fairseq joins torchrun's processes by itself only where a process sees several GPUs; elsewhere each would
    train a model of its own in silence.

    Raises:
        RuntimeError: that is the case; the message says which options join the processes.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or n_processes == 1:
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    raise RuntimeError(
        f"torchrun started {n_processes} processes, but fairseq has not joined them, so each would train a model of "
        "its own. Give every process these options: --distributed-world-size $WORLD_SIZE --distributed-rank $RANK "
        "--distributed-init-method tcp://$MASTER_ADDR:$MASTER_PORT --distributed-no-spawn; without GPUs also "
        "--cpu --distributed-backend gloo --ddp-backend legacy_ddp. A shell in each process fills in the variables: "
        "torchrun … --no-python bash -c 'fairseq-train … --distributed-rank $RANK …'"
    )


def is_first_rank() -> bool:
    """Whether this process is the first of those that train together, or trains alone."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
