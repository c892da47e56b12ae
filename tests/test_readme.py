"""The README names what there is."""

import re
from dataclasses import fields

import pytest
from conftest import ROOT
from fairseq.tasks.language_modeling import LanguageModelingConfig

from fairseq_g2lstm import config_lm
from fairseq_g2lstm.config import ARCHITECTURES, FALLBACKS, G2LSTMConfig, GateConfig
from fairseq_g2lstm.config_lm import G2LSTMLanguageModelConfig
from fairseq_g2lstm.criterions import GateLogConfig, GateScheduleConfig
from fairseq_g2lstm.criterions.activation import ActivationConfig
from fairseq_g2lstm.optim.nt_asgd import NTASGDConfig
from fairseq_g2lstm.tasks.language_modeling import G2LSTMLanguageModelingConfig

README = (ROOT / "README.md").read_text()


def table_rows() -> dict[str, list[str]]:
    """The option tables' rows by option, without the option itself."""
    rows = re.findall(r"^\| `(--[a-z0-9-]+)` \|(.*)\|$", README, re.MULTILINE)
    return {option: [cell.strip().strip("`") for cell in rest.split("|")] for option, rest in rows}


CONFIGS = [G2LSTMConfig, GateScheduleConfig, GateLogConfig]
FAIRSEQS = {"_name", "save_dir", "tensorboard_logdir"}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_has_a_row_and_every_row_an_option(config):
    options = {"--" + f.name.replace("_", "-") for f in fields(config) if f.name not in FAIRSEQS}
    assert options <= table_rows().keys()


def test_the_rows_name_no_other_option():
    known = {f.name for config in CONFIGS for f in fields(config)} - FAIRSEQS
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


def document_rows(name: str) -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(--[a-z0-9-]+)` \|(.*)\|$", (ROOT / "docs" / name).read_text(), re.MULTILINE)
    return {option: [cell.strip().strip("`") for cell in rest.split("|")] for option, rest in rows}


def test_the_page_of_language_models_has_a_row_for_each_option():
    gates = {f.name for f in fields(GateConfig)}
    own = {f.name for f in fields(G2LSTMLanguageModelingConfig)} - {f.name for f in fields(LanguageModelingConfig)}
    own |= {f.name for config in (G2LSTMLanguageModelConfig, ActivationConfig, NTASGDConfig) for f in fields(config)}
    own |= {"tokens_per_sample"}
    of_fairseq = {"_name", "lr", "update_freq", "sentence_avg", "disable_validation", "validate_interval"}
    of_fairseq |= {"post_process"}
    expected = own - gates - of_fairseq
    assert {option[2:].replace("-", "_") for option in document_rows("language_models.md")} == expected


def test_the_page_of_language_models_gives_the_defaults_and_the_architectures_sizes():
    rows = document_rows("language_models.md")
    tables = config_lm.LANGUAGE_MODEL
    for option in fields(G2LSTMLanguageModelConfig):
        if option.name in {f.name for f in fields(GateConfig)}:
            continue
        fallback = tables.fallbacks.get(option.name)
        default, zaremba, awd = rows["--" + option.name.replace("_", "-")][:3]
        is_option = fallback in tables.fallbacks
        expected = "--" + fallback.replace("_", "-") if is_option else "" if fallback is None else str(fallback)
        assert default == expected
        for name, cell in (("g2lstm_lm_zaremba", zaremba), ("g2lstm_lm_ptb", awd)):
            size = tables.architectures[name].get(option.name)
            assert cell == ("" if size is None else f"{size:g}" if type(size) is float else str(size))
    assert rows["--asgd-nonmono"][0] == str(NTASGDConfig.asgd_nonmono)
    for name in ("activation_reg", "temporal_activation_reg"):
        assert rows["--" + name.replace("_", "-")][0] == str(getattr(ActivationConfig, name))


def test_relative_links_lead_somewhere():
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]
    documents += [ROOT / "kernels" / "README.md", ROOT / "benchmarks" / "README.md"]
    for document in [*documents, *ROOT.glob("benchmarks/results/*/README.md")]:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text()):
            if "://" in target:
                continue
            page = document.parent / target if target else document
            assert page.exists(), f"{document.relative_to(ROOT)} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{document.relative_to(ROOT)} links to {target}#{anchor}"
