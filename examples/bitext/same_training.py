"""Whether train.sh can go on: whether its folder holds the same training, and a whole checkpoint.

    python -m examples.bitext.same_training SAVE_DIR [all of fairseq-train's arguments]
"""

from __future__ import annotations

from typing import Any

from examples.common.errors import run_main
from examples.common.fairseq_log import architecture, optimizer, setting
from examples.common.same_training import main_of

# What makes a training another one. Its length, its batches on the GPUs there are, and how it is watched do not; sizes
# of the model do, which fairseq notices itself.
NAMES = (
    "criterion", "seed", "lr", "lr_scheduler", "warmup_updates", "warmup_init_lr", "clip_norm", "weight_decay",
    "momentum", "adam_betas", "adam_eps", "label_smoothing", "sentence_avg", "dropout", "encoder_dropout_in",
    "encoder_dropout_out", "decoder_dropout_in", "decoder_dropout_out", "gate_type", "gate_temperature",
    "gate_temperature_schedule", "gate_temperature_start", "gate_temperature_end", "gate_temperature_updates",
    "gate_noise_prob", "gate_noise_sharing", "gate_noise_schedule", "gate_noise_start", "gate_noise_end",
    "gate_noise_updates", "source_lang", "target_lang", "train_subset", "fp16", "amp", "lr_shrink", "lr_threshold",
    "lr_patience", "lr_period_updates", "t_mult", "min_lr", "max_lr", "force_anneal", "total_num_update", "power",
    "end_learning_rate", "warmup_steps", "hold_steps", "decay_steps", "phase_ratio", "init_lr_scale", "final_lr_scale",
    "ignore_prefix_size", "activation_reg", "temporal_activation_reg", "truncate_source", "encoder_freeze_embed",
    "decoder_freeze_embed",
)  # fmt: skip


def identity(settings: str) -> dict[str, Any]:
    """What makes a training another one, of that what is given a value: the others have what then held."""
    named = {"architecture": architecture(settings), "optimizer": optimizer(settings)}
    found = named | {name: setting(settings, name) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def main() -> None:
    """The command."""
    main_of("examples.bitext.same_training", identity)


if __name__ == "__main__":
    run_main(main)
