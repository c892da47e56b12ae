"""The README names what there is."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fairseq_g2lstm.config import ARCHITECTURES, FALLBACKS, G2LSTMConfig
from fairseq_g2lstm.criterions import GateScheduleConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def table_rows() -> dict[str, list[str]]:
    """The option tables' rows by option, without the option itself."""
    rows = re.findall(r"^\| `(--[a-z-]+)` \|(.*)\|$", README, re.MULTILINE)
    return {option: [cell.strip().strip("`") for cell in rest.split("|")] for option, rest in rows}


@pytest.mark.parametrize("config", [G2LSTMConfig, GateScheduleConfig])
def test_every_option_has_a_row_and_every_row_an_option(config):
    options = {"--" + f.name.replace("_", "-") for f in fields(config) if f.name != "_name"}
    assert options <= table_rows().keys()


def test_the_rows_name_no_other_option():
    known = {f.name for config in (G2LSTMConfig, GateScheduleConfig) for f in fields(config)}
    assert {option[2:].replace("-", "_") for option in table_rows()} <= known


def test_the_rows_give_the_defaults_and_the_architectures_sizes():
    rows = table_rows()
    for option, fallback in FALLBACKS.items():
        default, iwslt, wmt = rows["--" + option.replace("_", "-")][:3]
        expected = "--" + fallback.replace("_", "-") if isinstance(fallback, str) else str(fallback)
        assert default == expected
        for name, cell in (("g2lstm_iwslt", iwslt), ("g2lstm_wmt", wmt)):
            size = ARCHITECTURES[name].get(option)
            assert cell == ("" if size is None else f"{size:g}")


def test_relative_links_lead_somewhere():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
