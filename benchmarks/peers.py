"""What G2-LSTM's layer is timed against: modules with its weights, called like it.

Each takes (T, B, I) and returns outputs (T, B, H) first. `IdentityLSTM` and `LoopLSTM` compute gumbel gates with
noise of torch's generator; torch.nn.LSTM and FlashRNN compute the plain LSTM.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import kernels_missing
from benchmarks.timing import Workload, set_tf32
from fairseq_g2lstm import G2LSTM, ops
from fairseq_g2lstm.reference import logistic


def draw_noise(shape: tuple[int, ...], noise_prob: float, like: Tensor) -> Tensor:
    """Logistic noise m n with m ~ Bernoulli(p), from torch's generator."""
    u, m = torch.rand(2, *shape, device=like.device, dtype=torch.float32)
    return ((m < noise_prob) * logistic(u)).to(like.dtype)


class Unavailable(Exception):
    """A peer cannot run here; the text says why."""


class IdentityLSTM(nn.Module):
    """torch.nn.LSTM that computes gumbel gates.

    (a + m n) / tau is affine in h: with the rows of the input and forget gates divided by tau, the noise appended to
    the input and an identity / tau beside W_ih, the ordinary LSTM computes exactly the gumbel layer.

    Args:
        lstm: a single layer in one direction with biases, whose weights and settings are taken.
    """

    def __init__(self, lstm: G2LSTM) -> None:
        super().__init__()
        self.noise_prob = lstm.noise_prob
        h_size = lstm.hidden_size
        weight = lstm.weights(0, False).w_ih
        self.lstm = nn.LSTM(
            lstm.input_size + 2 * h_size, h_size, bias=lstm.bias, device=weight.device, dtype=weight.dtype
        )
        block = torch.zeros(4 * h_size, 2 * h_size, device=weight.device, dtype=weight.dtype)
        block.fill_diagonal_(1.0)
        with torch.no_grad():
            for name, own in self.lstm.named_parameters():
                given = getattr(lstm, name)
                own.copy_(torch.cat((given, block), dim=1) if name == "weight_ih_l0" else given)
                own[: 2 * h_size] /= lstm.temperature

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the layer on x (T, B, I) with noise m n (T, B, 2H), the input gates' first; None draws it."""
        if noise is None:
            noise = draw_noise((*x.shape[:2], 2 * self.lstm.hidden_size), self.noise_prob, x)
        return self.lstm(torch.cat((x, noise), dim=-1))


class LoopLSTM(nn.Module):
    """A loop over time steps in Python with two products and the noise at each, as the authors' code has it.

    Args:
        lstm: a single layer in one direction with biases, whose weights and settings are taken.
    """

    def __init__(self, lstm: G2LSTM) -> None:
        super().__init__()
        self.temperature, self.noise_prob = lstm.temperature, lstm.noise_prob
        weights = lstm.weights(0, False)
        bias = weights.bias
        assert bias is not None
        self.w_ih, self.w_hh = (nn.Parameter(w.detach().t().contiguous()) for w in weights[:2])
        self.bias = nn.Parameter(bias.detach())

    def _gate(self, a: Tensor) -> Tensor:
        u = torch.rand_like(a)
        noise = torch.bernoulli(torch.full_like(a, self.noise_prob)) * logistic(u)
        return torch.sigmoid((a + noise) * (1 / self.temperature))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the layer on x (T, B, I)."""
        h = c = x.new_zeros(x.size(1), self.w_hh.size(0))
        outputs = []
        for x_t in x:
            a_i, a_f, a_g, a_o = (torch.addmm(self.bias, h, self.w_hh) + x_t @ self.w_ih).chunk(4, dim=1)
            c = self._gate(a_f) * c + self._gate(a_i) * torch.tanh(a_g)
            h = torch.sigmoid(a_o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class ReferenceLSTM(nn.Module):
    """The layer computed by the plain-PyTorch reference."""

    def __init__(self, lstm: G2LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the layer on x (T, B, I)."""
        with ops.use_reference():
            return self.lstm(x)


class FlashLSTM(nn.Module):
    """The plain LSTM by FlashRNN (Pöppel, Beck, Hochreiter, 2024) behind a product for the inputs.

    Args:
        lstm: a single layer in one direction with biases, whose weights are taken.
        backend: FlashRNN's name of a kernel.

    Raises:
        Unavailable: flashrnn is not installed.
    """

    def __init__(self, lstm: G2LSTM, backend: str = "cuda_fused") -> None:
        try:
            from flashrnn import flashrnn
        except ImportError as error:
            raise Unavailable(f"flashrnn cannot be imported: {error}") from error
        super().__init__()
        self.function, self.backend = flashrnn, backend
        weights = lstm.weights(0, False)
        bias = weights.bias
        assert bias is not None
        self.w_ih, self.w_hh = (nn.Parameter(w.detach().clone()) for w in weights[:2])
        self.bias = nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Runs the layer on x (T, B, I)."""
        n_steps, n_rows, h_size = x.size(0), x.size(1), self.w_hh.size(1)
        projected = F.linear(x.transpose(0, 1), self.w_ih).view(n_rows, n_steps, 4, 1, h_size)
        states, _ = self.function(
            projected,
            self.w_hh.view(4, 1, h_size, h_size),
            self.bias.view(4, 1, h_size),
            function="lstm",
            backend=self.backend,
            dtype=str(x.dtype).removeprefix("torch."),
        )
        return states[0].squeeze(2).transpose(0, 1), None


def _library_twin(lstm: G2LSTM) -> nn.LSTM:
    weight = lstm.weights(0, False).w_ih
    twin = nn.LSTM(lstm.input_size, lstm.hidden_size, device=weight.device, dtype=weight.dtype)
    twin.load_state_dict(lstm.state_dict())
    return twin


def _compiled(lstm: G2LSTM) -> G2LSTM:
    error = kernels_missing(lstm.weights(0, False).w_ih.device.type)
    if error is not None:
        raise Unavailable(f"the compiled kernels are not in use: {error}")
    return lstm


def persistent_workload(run: Workload, lstm: G2LSTM, x: Tensor) -> Workload:
    """The workload of a layer on CUDA with all steps in one launch, whatever G2LSTM_CUDA_LAYER says; runs it once.

    Args:
        run: trains the layer on x.
        lstm: the layer.
        x: (T, B, I), requires its gradient.

    Raises:
        Unavailable: the device is none of CUDA's, or has no such kernel for the layer, or refuses to launch it, or its
            results are not those of a launch for every step.
    """

    def run_persistent() -> object:
        with environment(G2LSTM_CUDA_LAYER="persistent"):
            return run()

    def is_persistent() -> bool:
        with environment(G2LSTM_CUDA_LAYER="persistent"):
            return bool(torch.ops.g2lstm.cuda_layer(x.dtype, *x.shape[:2], lstm.hidden_size) == "persistent")

    if not x.is_cuda:
        raise Unavailable("it is a kernel of CUDA's")
    if not is_persistent():
        raise Unavailable("the device has no persistent kernel for this dtype and these units")
    run_persistent()
    if not is_persistent():
        raise Unavailable("the device refused the launch")
    check_kernels_agree(lstm, x)
    return run_persistent


def check_kernels_agree(lstm: G2LSTM, x: Tensor) -> None:
    """Holds outputs and gradients of the layer in one launch against those of a launch for every step.

    Sums are in another order, and half types rounded at every step: 2e-4 and eight eps of a tensor's norm are allowed.
    TF32 is off meanwhile, to which the products of single steps might be rounded.

    Args:
        lstm: the layer, in training.
        x: (T, B, I), requires its gradient.

    Raises:
        Unavailable: they differ by more, or are no numbers.
    """
    found: dict[str, list[Tensor]] = {}
    tf32 = torch.backends.cuda.matmul.allow_tf32
    set_tf32(False)
    try:
        for kernel in ("steps", "persistent"):
            torch.manual_seed(2)
            with environment(G2LSTM_CUDA_LAYER=kernel):
                outputs = lstm(x)[0]
                given = torch.randn(outputs.shape, device=x.device, dtype=x.dtype)
                found[kernel] = [outputs.detach(), *torch.autograd.grad(outputs, [x, *lstm.parameters()], given)]
    finally:
        set_tf32(tf32)
    allowed = 2e-4 if x.dtype == torch.float32 else 8 * torch.finfo(x.dtype).eps
    names = ("outputs", *(f"gradient of {name}" for name in ("x", *dict(lstm.named_parameters()))))
    for name, expected, other in zip(names, found["steps"], found["persistent"], strict=True):
        difference = float((other.double() - expected.double()).norm() / expected.double().norm())
        if not difference <= allowed:
            raise Unavailable(f"by a launch for every step, {name} differ by {difference:.2g} of their norm")


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables of the environment, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


PEERS: dict[str, Callable[[G2LSTM], nn.Module]] = {
    "g2lstm": _compiled,
    "g2lstm-persistent": _compiled,  # run by persistent_workload
    "torch.nn.LSTM": _library_twin,
    "identity": IdentityLSTM,
    "python-loop": LoopLSTM,
    "reference": ReferenceLSTM,
    "flashrnn": FlashLSTM,
}
TITLES = {
    "g2lstm": "G2LSTM",
    "g2lstm-persistent": "G2LSTM in one launch",
    "torch.nn.LSTM": "torch.nn.LSTM",
    "identity": "torch.nn.LSTM by the identity",
    "python-loop": "loop in Python",
    "reference": "reference",
    "flashrnn": "FlashRNN",
}
# On CUDA the reference makes its noise on the CPU, which takes seconds at the larger shapes and tells nothing; a layer
# in one launch that fails would take the others' times along, with the process's CUDA context.
DEFAULT_PEERS = {
    "cpu": ("g2lstm", "torch.nn.LSTM", "identity", "python-loop", "reference"),
    "cuda": ("g2lstm", "torch.nn.LSTM", "identity", "python-loop", "flashrnn"),
}
SWEEP_PEERS = ("g2lstm", "g2lstm-persistent", "torch.nn.LSTM", "identity", "python-loop")
