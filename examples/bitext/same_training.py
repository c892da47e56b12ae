"""Whether train.sh can go on: whether its folder holds the same training, and a whole checkpoint.

    python -m examples.bitext.same_training SAVE_DIR [all of fairseq-train's arguments]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from examples.common import same_training
from examples.common.errors import run_main
from examples.common.fairseq_log import architecture, optimizer, setting

# What makes a training another one. Its length, its batches on the GPUs there are, and how it is watched do not.
NAMES = (
    "criterion", "seed", "lr", "lr_scheduler", "warmup_updates", "warmup_init_lr", "clip_norm", "weight_decay",
    "label_smoothing", "dropout", "encoder_dropout_in", "encoder_dropout_out", "decoder_dropout_in",
    "decoder_dropout_out", "encoder_embed_dim", "encoder_hidden_size", "encoder_layers", "encoder_bidirectional",
    "decoder_embed_dim", "decoder_hidden_size", "decoder_layers", "decoder_out_embed_dim", "decoder_attention",
    "share_decoder_input_output_embed", "share_all_embeddings", "gate_type", "gate_temperature",
    "gate_temperature_schedule", "gate_temperature_start", "gate_temperature_end", "gate_temperature_updates",
    "gate_noise_prob", "gate_noise_sharing", "gate_noise_schedule", "gate_noise_start", "gate_noise_end",
    "gate_noise_updates", "source_lang", "target_lang", "train_subset", "fp16", "amp",
)  # fmt: skip


def changed_options(sessions: Sequence[str], now: str) -> list[str]:
    """What a session had otherwise than is asked for now, such as `gate_type sigmoid`.

    An option that one of the two does not know, as where a version of the plugin came between, is none.
    """
    expected, changed = _identity(now), []
    for settings in sessions:
        for name, before in _identity(settings).items():
            if before != expected.get(name, before) and f"{name} {before}" not in changed:
                changed.append(f"{name} {before}")
    return changed


def _identity(settings: str) -> dict[str, Any]:
    named = {"architecture": architecture(settings), "optimizer": optimizer(settings)}
    known = [name for name in NAMES if re.search(rf"\b{name}('|=)", settings)]
    return named | {name: setting(settings, name) for name in known}


def main() -> None:
    """The command."""
    same_training.main_of("examples.bitext.same_training", changed_options)


if __name__ == "__main__":
    run_main(main)
