"""Modules and whole trainings on a GPU: autocast, half precision, going on elsewhere. Without a GPU nothing runs."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import train_in_process, train_options
from lm_runs import eval_lm, lm_options
from operator_cases import BF16, F16, F32, assert_near, dtype_name, needs_kernels
from torch import nn

from fairseq_g2lstm import G2LSTM
from fairseq_g2lstm.checkpoints import read_checkpoint

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU (torch.cuda.is_available())"),
]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=dtype_name)
def test_a_module_under_autocast_gives_on_the_gpu_what_it_gives_on_the_cpu(dtype):
    torch.manual_seed(0)
    lstm = G2LSTM(16, 32, 2, bidirectional=True)
    modules = {"cpu": lstm, "cuda": copy.deepcopy(lstm).cuda()}
    x, lengths = torch.randn(6, 4, 16), torch.tensor([6, 2, 5, 1])
    found = {}
    for device, module in modules.items():
        packed = nn.utils.rnn.pack_padded_sequence(x.to(device), lengths, enforce_sorted=False)
        torch.manual_seed(1)  # of the noise
        with torch.autocast(device, dtype):
            output, (h_n, c_n) = module(packed)
        assert output.data.dtype == h_n.dtype == c_n.dtype == dtype
        (output.data.float().sum() + h_n.float().sum() + c_n.float().sum()).backward()
        found[device] = (output.data, h_n, c_n)
    eps = torch.finfo(dtype).eps
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        # two layers, each rounded at every step on the GPU, at its end on the CPU
        assert_near(one.cpu(), other, 8 * eps)
    for (name, one), other in zip(modules["cuda"].named_parameters(), lstm.parameters(), strict=True):
        assert one.grad.dtype == F32
        assert_near(one.grad.cpu(), other.grad, 16 * eps, name, floor=0.1)


@torch.no_grad()
def test_a_module_without_noise_is_captured_in_a_graph_and_one_with_noise_is_not():
    lstm = G2LSTM(16, 32, device="cuda").eval()
    x = torch.randn(5, 3, 16, device="cuda")
    expected = lstm(x)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = lstm(x)[0]
    graph.replay()
    torch.cuda.synchronize()
    assert_near(found, expected, 1e-5)
    lstm.train()
    noise = pytest.raises(RuntimeError, match="the noise's seed comes from the CPU")
    with noise, torch.cuda.graph(torch.cuda.CUDAGraph()):
        lstm(x)


def on_the_gpu(options: list[str]) -> list[str]:
    return [option for option in options if option != "--cpu"]


def assert_trained(folder: Path, n_updates: int) -> None:
    state = read_checkpoint(folder / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == n_updates
    assert all(weights.isfinite().all() for weights in state["model"].values())


@pytest.mark.parametrize("precision", [[], ["--fp16", "--fp16-init-scale", "16"], ["--amp"]], ids=str)
def test_a_translation_model_trains(precision, tiny_data, tmp_path):
    options = train_options(tiny_data, tmp_path, "g2lstm", "--gate-log-interval", 2, *precision)
    train_in_process(on_the_gpu(options))
    assert_trained(tmp_path, 10)


@pytest.mark.parametrize("precision", [[], ["--fp16", "--fp16-init-scale", "16"]], ids=str)
def test_a_language_model_trains_with_averaging_and_goes_on_on_the_cpu(precision, tiny_text, tmp_path):
    recipe = ["--optimizer", "nt_asgd", "--asgd-nonmono", 1, "--lr", 20, "--decoder-weight-drop", 0.3, *precision]
    train_in_process(on_the_gpu(lm_options(tiny_text, tmp_path, *recipe, "--max-epoch", 12)))
    assert read_checkpoint(tmp_path / "checkpoint_last.pt")["last_optimizer_state"]["averaging"]
    before = eval_lm(tiny_text, tmp_path / "checkpoint_last.pt")
    assert torch.isfinite(torch.tensor(before["loss"]))
    if not precision:
        # fairseq clips gradients of the CPU by a norm that it takes to the GPU it sees
        train_in_process(lm_options(tiny_text, tmp_path, *recipe, "--max-epoch", 13, "--clip-norm", 0))
        assert read_checkpoint(tmp_path / "checkpoint_last.pt")["extra_state"]["train_iterator"]["epoch"] == 14
