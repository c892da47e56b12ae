"""The ways in which a model is packed, and the checkpoints that come of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.common.errors import UserError
from examples.common.files import write_text
from examples.common.stages import Stages
from fairseq_g2lstm.checkpoints import model_name, model_options, read_checkpoint, write_checkpoint
from fairseq_g2lstm.compress.pack import memory_bytes, pack
from fairseq_g2lstm.compress.parts import OTHERS, Selection
from fairseq_g2lstm.compress.plan import Plan, uniform_plan
from fairseq_g2lstm.compress.transforms import parse
from fairseq_g2lstm.convert import to_g2lstm
from fairseq_g2lstm.packed import META

PAPER = Selection()
LAYERS = Selection("all")
WHOLE = Selection("all", others=OTHERS)
_COMMAND = ("python", "-m", "fairseq_g2lstm.compress", "pack")
TRANSLATION, LANGUAGE_MODEL = ("lstm", "g2lstm"), ("lstm_lm", "g2lstm_lm")


@dataclass(frozen=True)
class Packing:
    """One way to pack a model.

    Attributes:
        name: of its files and its row.
        compression: as `compress pack` takes it; None for none, which leaves the optimiser's state behind alone.
        selection: what is packed.
        eval_mode: the gates in evaluation from now on; None leaves them.
    """

    name: str
    compression: str | None
    selection: Selection = LAYERS
    eval_mode: str | None = None

    @property
    def has_integers(self) -> bool:
        """Whether weights are stored in integers, so that computing with them as they are rounds inputs as well."""
        return self.compression is not None and parse(self.compression).bits is not None

    def options(self) -> list[str]:
        """The options of `compress pack`."""
        options = ["--compression", str(self.compression), "--gates", self.selection.gates]
        options += ["--others", *self.selection.others] if self.selection.others else []
        return options + (["--gate-eval-mode", self.eval_mode] if self.eval_mode else [])


FLOAT32 = Packing("float32", None)
PACKINGS = (
    FLOAT32,
    Packing("lstm-int8", "int:8"),
    Packing("lstm-int4", "int:4"),
    Packing("model-int8", "int:8", WHOLE),
    Packing("model-int4", "int:4", WHOLE),
    Packing("lstm-rank64-int8", "rank:64+int:8"),
    Packing("gates-rank32", "rank:32", PAPER),
)
HARD = Packing("lstm-int8-hard", "int:8", eval_mode="hard")
QUICK = (FLOAT32, PACKINGS[1], PACKINGS[4])


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        name: in tables, and of its folder.
        given: the checkpoint that the user gave.
        kind: `lstm`, `g2lstm`, `lstm_lm` or `g2lstm_lm`.
        gate_type: of its gates; `sigmoid` of a stock model.
        seed: of its training.
        target_lang: what a translation model translates to, where its training was told; else None.
    """

    name: str
    given: Path
    kind: str
    gate_type: str
    seed: int
    target_lang: str | None

    @property
    def is_language_model(self) -> bool:
        return self.kind in LANGUAGE_MODEL

    def packings(self, quick: bool) -> list[Packing]:
        """What is done to it; hard gates are of models that were trained towards them."""
        hard = () if self.gate_type == "sigmoid" else (HARD,)
        return [*(QUICK if quick else PACKINGS), *hard]


def read_model(name: str, checkpoint: Path) -> Model:
    """What the example needs to know of a checkpoint.

    Raises:
        UserError: it is missing, cannot be read, is packed already or is of another model.
    """
    try:
        state = read_checkpoint(checkpoint)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    kind = str(model_name(state))
    if kind not in TRANSLATION + LANGUAGE_MODEL:
        known = ", ".join(TRANSLATION + LANGUAGE_MODEL)
        raise UserError(f"{checkpoint} is of {kind}; give checkpoints of {known}")
    if META in state["model"]:
        raise UserError(f"{checkpoint} is packed already; give the one that it was made of")
    gate_type = str(model_options(state).get("gate_type") or "sigmoid") if kind.startswith("g2") else "sigmoid"
    task = state["cfg"]["task"]
    target_lang = task.get("target_lang") if isinstance(task, dict) else None  # what else it is load_model refuses
    return Model(name, checkpoint, kind, gate_type, int(state["cfg"]["common"]["seed"]), target_lang)


def to_pack(stages: Stages, model: Model) -> Path:
    """The model's checkpoint as one of the plugin: the given one, or what a stock one is converted to."""
    if model.kind.startswith("g2"):
        return model.given
    converted = stages.directory / model.name / "converted.pt"

    def work() -> None:
        converted.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(to_g2lstm(read_checkpoint(model.given)), converted)

    stages.run(f"convert-{model.name}", work, inputs=[model.given], outputs=[converted])
    return converted


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint.

    Attributes:
        path: of the file.
        file_bytes: of the file, without an optimiser's state.
        recurrent_bytes: of the LSTM layers' weights and biases as they are stored.
        memory_bytes: of the loaded model's weights, tied ones once.
    """

    path: Path
    file_bytes: int
    recurrent_bytes: int
    memory_bytes: int


def pack_model(
    stages: Stages, model: Model, packing: Packing, checkpoint: Path, data: Path, choice: Plan | None = None
) -> Packed:
    """Packs a model, or takes what an earlier call has packed.

    Args:
        stages: of the output folder; the file is `MODEL/PACKING.pt` there.
        model: whose checkpoint is packed.
        packing: how.
        checkpoint: of the plugin's model.
        data: the data-bin folder, whose dictionaries the loaded model needs.
        choice: what a search chose for each matrix, in place of the packing's compression.
    """
    path = stages.directory / model.name / f"{packing.name}.pt"
    sizes = path.with_suffix(".json")
    chosen = None if choice is None else {part.name: transform.name for part, transform in choice.items()}

    def plan(weights: Mapping[str, Tensor]) -> Plan:
        if choice is not None or packing.compression is None:
            return choice or {}
        return uniform_plan(weights, parse(packing.compression), packing.selection)

    settings: dict[str, Any] = {"packing": packing.name, "compression": packing.compression, "choice": chosen}

    def work() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if packing.compression is not None:
            print(shlex.join([*_COMMAND, str(checkpoint), str(path), *packing.options()]), flush=True)
        written = pack(checkpoint, path, plan, {**settings, **asdict(packing.selection)}, packing.eval_mode)
        content = {
            "file_bytes": path.stat().st_size,
            "recurrent_bytes": written.recurrent[1],
            "memory_bytes": memory_bytes(path, data),
        }
        write_text(sizes, json.dumps(content, indent=1) + "\n")

    stages.run(
        f"pack-{model.name}-{packing.name}",
        work,
        inputs=[checkpoint],
        outputs=[path, sizes],
        options={**settings, "selection": asdict(packing.selection), "eval_mode": packing.eval_mode},
    )
    return Packed(path, **json.loads(sizes.read_text(encoding="utf-8")))
