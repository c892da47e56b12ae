"""The end of a process in which fairseq still reads batches ahead."""

import subprocess
import sys

import pytest
from conftest import ROOT

# Batches that spend their time in torch's C++, of which one is taken.
READ_AHEAD = """
import torch, fairseq_g2lstm
from fairseq.data.iterators import BufferedIterator

class Batches:
    def __len__(self):
        return 1000

    def __iter__(self):
        numbers = torch.randn(400, 400)
        while True:
            for _ in range(20):
                torch.mm(numbers, numbers)
            yield numbers

batches = BufferedIterator({room}, Batches())
next(batches)
"""


@pytest.mark.parametrize("room", [1, 1000], ids=["waiting for room", "reading"])
def test_a_thread_that_reads_ahead_does_not_abort_the_process(room):
    program = READ_AHEAD.format(room=room)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
