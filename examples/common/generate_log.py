"""Read what fairseq-generate wrote.

    python -m examples.common.generate_log DIR/generate-test.txt

writes `DIR/test.hyp` and `DIR/test.ref`, in the order of the test set, and prints fairseq's score.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import atomic_writers, read_lines


@dataclass(frozen=True)
class Translations:
    """What one run of fairseq-generate gave.

    Attributes:
        hypotheses: the best one of each sentence, in the order of the data.
        references: likewise; a segment unknown to the dictionary stands as `<<unk>>`.
        score_line: fairseq's own line with the score.
    """

    hypotheses: list[str]
    references: list[str]
    score_line: str

    @property
    def fairseq_score(self) -> str:
        """The score line from its number on, such as `42.20, 73.0/49.1/35.6/25.9 (BP=…)`."""
        return self.score_line.partition(" = ")[2]


def read_translations(log: Path) -> Translations:
    """Read a log of fairseq-generate.

    Raises:
        UserError: the file is missing, cut off, without references, or has gaps.
    """
    hypotheses: dict[int, tuple[float, str]] = {}
    references: dict[int, str] = {}
    score_line = ""
    for line in read_lines(log):
        kind, _, rest = line.partition("-")
        if kind == "D":
            number, score, text = rest.split("\t", 2)
            best = hypotheses.get(int(number))
            if best is None or float(score) > best[0]:
                hypotheses[int(number)] = (float(score), text)
        elif kind == "T":
            number, text = rest.split("\t", 1)
            references[int(number)] = text
        elif line.startswith("Generate "):
            score_line = line
    count = len(hypotheses)
    if not score_line or not count:
        raise UserError(
            f"{log} has no score line, so fairseq-generate did not finish; run it again"
        )
    if sorted(hypotheses) != list(range(count)) or hypotheses.keys() != references.keys():
        raise UserError(
            f"{log} has {count} translations and {len(references)} references that are not the "
            "whole of one test set; generate it in one run, without sharding or skipping and "
            "with --required-batch-size-multiple 1"
        )
    return Translations(
        [hypotheses[i][1] for i in range(count)], [references[i] for i in range(count)], score_line
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.common.generate_log")
    parser.add_argument("log", type=Path, metavar="DIR/generate-SUBSET.txt")
    log = parser.parse_args().log
    translations = read_translations(log)
    subset = log.stem.removeprefix("generate-")
    names = [log.with_name(f"{subset}.{side}") for side in ("hyp", "ref")]
    with atomic_writers(*names) as streams:
        for stream, lines in zip(
            streams, (translations.hypotheses, translations.references), strict=True
        ):
            stream.writelines(line + "\n" for line in lines)
    print(translations.score_line)


if __name__ == "__main__":
    run_main(main)
