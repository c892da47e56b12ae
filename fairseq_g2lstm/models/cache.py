"""The continuous cache of Grave, Joulin, Usunier, "Improving Neural Language Models with a Continuous Cache"
(ICLR 2017): words that followed states like the present one become more likely."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class CacheSettings(NamedTuple):
    """size: N >= 0, the steps that are remembered, 0 for no cache. theta: >= 0, how sharply a state's likeness counts.
    weight: lambda, 0 to below 1, the share of the cache's distribution in the mixture."""

    size: int = 0
    theta: float = 0.3
    weight: float = 0.1

    def check(self) -> None:
        """Raises ValueError where a value is outside its range."""
        if self.size < 0:
            raise ValueError(f"--cache-size must be >= 0 (0 for no cache), got {self.size}")
        if not (math.isfinite(self.theta) and self.theta >= 0):
            raise ValueError(f"--cache-theta must be >= 0, got {self.theta}")
        if not 0 <= self.weight < 1:
            raise ValueError(f"--cache-lambda must be >= 0 and < 1, got {self.weight}")


class CacheAttention(NamedTuple):
    """weights (B, T, K): what each step gives to each remembered word, summing to 1, or to 0 where there is none.
    words (B, K): the remembered words."""

    weights: Tensor
    words: Tensor


def attend(
    outputs: Tensor, tokens: Tensor, keys: Tensor | None, key_tokens: Tensor | None, settings: CacheSettings
) -> tuple[CacheAttention, Tensor, Tensor]:
    """Looks up each step's output among those of the N steps before it.

    What followed a step is the token read at the next one, so no word is used before it has been read.

    Args:
        outputs: (B, T, H) the last layer's. tokens: (B, T) read at these steps.
        keys, key_tokens: (B, N', H) and (B, N') of the steps before, or None.
        settings: N, how many steps are looked back on, and theta, how sharply.

    Returns:
        the attention; keys (B, N'', H) and key_tokens (B, N'') for the next block, the last N at most.
    """
    if keys is not None and key_tokens is not None:
        all_keys, all_tokens = torch.cat([keys, outputs], 1), torch.cat([key_tokens, tokens], 1)
    else:
        all_keys, all_tokens = outputs, tokens
    n_steps, n_keys = outputs.size(1), all_keys.size(1)
    scores = settings.theta * torch.bmm(outputs.float(), all_keys[:, :-1].float().transpose(1, 2))
    query = torch.arange(n_keys - n_steps, n_keys, device=outputs.device)[:, None]
    key = torch.arange(n_keys - 1, device=outputs.device)
    known = (key < query) & (key >= query - settings.size)
    weights = scores.masked_fill(~known, -math.inf).softmax(-1).nan_to_num(0.0)
    attention = CacheAttention(weights, all_tokens[:, 1:])
    return attention, all_keys[:, -settings.size :], all_tokens[:, -settings.size :]


def mix(log_probs: Tensor, attention: CacheAttention, weight: float) -> Tensor:
    """(1 - lambda) of the model's distribution and lambda of the cache's; the model's alone where the cache is empty.

    Args:
        log_probs: (B, T, V) logarithms of the model's probabilities.
        attention: of `attend`.
        weight: lambda.

    Returns:
        (B, T, V) float32 logarithms of the mixture, finite where log_probs is.

    Raises:
        ValueError: log_probs is not of the block that the attention is of.
    """
    weights, words = attention
    if log_probs.shape[:2] != weights.shape[:2]:
        raise ValueError(
            f"the cache needs a block's probabilities whole, {tuple(weights.shape[:2])} steps, "
            f"got {tuple(log_probs.shape[:2])}: leave out --softmax-batch"
        )
    log_probs = log_probs.float()  # as the weights are; an adaptive softmax has half precision under --fp16
    share = weight * weights.sum(-1, keepdim=True)
    words = words[:, None, :].expand(weights.shape)
    cached = torch.zeros_like(log_probs).scatter_add_(-1, words, weight * weights)
    return torch.logaddexp(log_probs + torch.log1p(-share), cached.log())
