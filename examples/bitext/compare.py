"""Compare translations of one test set: fairseq's score, sacrebleu's, and who is really ahead.

    python -m examples.bitext.compare BASELINE_DIR SYSTEM_DIR [SYSTEM_DIR ...] [--out FILE.json]

Each folder is one that `generate.sh` wrote to. Every system is held against the first by paired
bootstrap resampling (Koehn, Statistical Significance Tests for Machine Translation Evaluation,
2004).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from examples.common.errors import UserError, run_main
from examples.common.files import read_lines, write_text
from examples.common.generate_log import Translations, read_translations
from examples.common.options import docstring_parser

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One system's result.

    Attributes:
        name: its folder, as given.
        fairseq: the score as fairseq-generate wrote it.
        bleu: sacrebleu's score.
        mean: of the bootstrap samples.
        interval: half the width of their 95% confidence interval.
        p_value: of the difference from the first system; None for the first.
    """

    name: str
    fairseq: str
    bleu: float
    mean: float
    interval: float
    p_value: float | None

    def verdict(self, baseline: Row) -> str:
        """One plain sentence on this system against the baseline."""
        assert self.p_value is not None
        numbers = f"{self.bleu:.2f} against {baseline.bleu:.2f} BLEU, p = {self.p_value:.4f}"
        if self.p_value >= SIGNIFICANT or self.bleu == baseline.bleu:
            return (
                f"{self.name} and {baseline.name} cannot be told apart at p < {SIGNIFICANT} "
                f"({numbers})."
            )
        where = "ahead of" if self.bleu > baseline.bleu else "behind"
        return f"{self.name} is {where} {baseline.name} ({numbers})."


def compare(
    systems: dict[str, Translations], references: list[str], samples: int = 1000
) -> tuple[list[Row], str]:
    """Score every system and test it against the first.

    Args:
        systems: translations by name, in order; the first is the baseline.
        references: one a sentence, tokenised like the translations.
        samples: number of bootstrap samples.

    Returns:
        One row a system, and sacrebleu's signature.
    """
    test = PairedTest(
        [(name, system.hypotheses) for name, system in systems.items()],
        # The text is tokenised already; `force` only silences sacrebleu's remark on that.
        {"BLEU": BLEU(tokenize="none", force=True)},
        [references],
        test_type="bs",
        n_samples=samples,
    )
    signatures, scores = test()
    results: list[Any] = scores["BLEU"]
    rows = [
        Row(
            name,
            system.fairseq_score,
            float(result.score),
            float(result.mean),
            float(result.ci),
            None if result.p_value is None else float(result.p_value),
        )
        for (name, system), result in zip(systems.items(), results, strict=True)
    ]
    return rows, str(signatures["BLEU"])


def markdown(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| system | sacrebleu | mean ± 95% interval | p | fairseq's own score |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        p_value = "" if row.p_value is None else f"{row.p_value:.4f}"
        lines.append(
            f"| {row.name} | {row.bleu:.2f} | {row.mean:.2f} ± {row.interval:.2f} | {p_value} "
            f"| {row.fairseq} |"
        )
    return "\n".join(lines)


def load(
    folders: list[str], subset: str, reference: Path | None
) -> tuple[dict[str, Translations], list[str]]:
    """Read the folders' logs and check that they translate the same sentences.

    Raises:
        UserError: fewer than two folders, one named twice, references that differ.
    """
    if len(folders) < 2:
        raise UserError(f"give a baseline and at least one system to compare, got {len(folders)}")
    if len(set(folders)) < len(folders):
        raise UserError(f"each folder may be given once, got {' '.join(folders)}")
    systems = {name: read_translations(Path(name) / f"generate-{subset}.txt") for name in folders}
    first = systems[folders[0]].references
    for name, system in systems.items():
        if system.references != first:
            raise UserError(
                f"{name} and {folders[0]} have different references; translate the same test set, "
                "prepared in the same way, with both"
            )
    if reference is None:
        return systems, first
    lines = list(read_lines(reference))
    if len(lines) != len(first):
        raise UserError(f"{reference} has {len(lines)} lines for {len(first)} translations")
    return systems, lines


def main() -> None:
    """The command."""
    parser = docstring_parser("examples.bitext.compare", __doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument(
        "--subset", default="test", metavar="NAME", help="compare generate-NAME.txt (default: test)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="tokenised references to use instead of those in the logs, where "
        "fairseq shows segments unknown to its dictionary as <<unk>>",
    )
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="bootstrap samples (default: 1000)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the result there")
    options = parser.parse_args()
    if options.samples < 1:
        raise UserError(f"--samples must be >= 1, got {options.samples}")
    systems, references = load(options.folders, options.subset, options.reference)
    rows, signature = compare(systems, references, options.samples)
    verdicts = [row.verdict(rows[0]) for row in rows[1:]]
    print(markdown(rows), "", f"sacrebleu: {signature}", "", *verdicts, sep="\n")
    if options.out:
        result = {
            "rows": [asdict(row) for row in rows],
            "signature": signature,
            "sentences": len(references),
            "verdicts": verdicts,
        }
        write_text(options.out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_main(main)
