"""The quickstart: its corpus is true in both languages, and its pipeline runs and resumes."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from conftest import ROOT, run_module

for package in ("babel", "num2words"):
    pytest.importorskip(package, reason=f"the quickstart's text is spelled with {package}, which is not installed")

from examples.common import files  # noqa: E402
from examples.common.errors import UserError  # noqa: E402
from examples.common.files import held_folder  # noqa: E402
from examples.quickstart import arms, corpus, report, spell  # noqa: E402
from examples.quickstart.machine import machine, sentence  # noqa: E402
from examples.quickstart.run import parse_arguments  # noqa: E402

SIZES = {"train": 3000, "valid": 200, "test": 200}

_UNIT_WORDS = {
    "de": """null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn
             fünfzehn sechzehn siebzehn achtzehn neunzehn""",
    "en": """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
             fifteen sixteen seventeen eighteen nineteen""",
}
_TEN_WORDS = {
    "de": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
}
_WEEKDAYS = {
    "de": "samstag sonntag montag dienstag mittwoch donnerstag freitag",
    "en": "saturday sunday monday tuesday wednesday thursday friday",
}
UNITS = {lang: {word: n for n, word in enumerate(words.split())}
         for lang, words in _UNIT_WORDS.items()}  # fmt: skip
TENS = {lang: {word: 10 * n for n, word in enumerate(words.split(), 2)}
        for lang, words in _TEN_WORDS.items()}  # fmt: skip


def read_german(word: str) -> int:
    """The number that a German number word means, from its parts."""
    if word == "eins":
        return 1
    for name, value in (("tausend", 1000), ("hundert", 100)):
        if name in word:
            before, after = word.split(name, 1)
            return read_german(before) * value + (read_german(after) if after else 0)
    if word in UNITS["de"]:
        return UNITS["de"][word]
    if word in TENS["de"]:
        return TENS["de"][word]
    unit, ten = word.split("und")
    assert 1 <= UNITS["de"][unit] <= 9
    return UNITS["de"][unit] + TENS["de"][ten]


def read_english(words: str) -> int:
    """The number that English number words mean, from their parts."""
    total = group = 0
    for word in words.replace("-", " ").replace(" and ", " ").split():
        if word == "thousand":
            total, group = total + group * 1000, 0
        elif word == "hundred":
            group *= 100
        else:
            group += UNITS["en"][word] if word in UNITS["en"] else TENS["en"][word]
    return total + group


NUMBERS = [*range(2200), *range(2200, 1_000_000, 997), 101_000, 201_001, 999_999]


def test_number_words_read_back_as_the_number():
    for n in NUMBERS:
        assert read_german(spell.cardinal(n, "de")) == n
        assert read_english(spell.cardinal(n, "en")) == n


@pytest.mark.parametrize(
    "n, de, en",
    [
        (0, "null", "zero"),
        (1, "eins", "one"),
        (16, "sechzehn", "sixteen"),
        (23, "dreiundzwanzig", "twenty-three"),
        (100, "einhundert", "one hundred"),
        (101_000, "einhunderteintausend", "one hundred and one thousand"),
        (1_234, "eintausendzweihundertvierunddreißig", "one thousand two hundred and thirty-four"),
    ],
)
def test_number_words_are_the_usual_ones(n, de, en):
    assert (spell.cardinal(n, "de"), spell.cardinal(n, "en")) == (de, en)


@pytest.mark.parametrize(
    "n, de, en",
    [
        (1, "erste", "first"),
        (3, "dritte", "third"),
        (7, "siebte", "seventh"),
        (8, "achte", "eighth"),
        (12, "zwölfte", "twelfth"),
        (19, "neunzehnte", "nineteenth"),
        (20, "zwanzigste", "twentieth"),
        (23, "dreiundzwanzigste", "twenty-third"),
        (100, "hundertste", "one hundredth"),
        (101, "einhunderterste", "one hundred and first"),
        (999, "neunhundertneunundneunzigste", "nine hundred and ninety-ninth"),
    ],
)
def test_ordinals_are_the_usual_ones(n, de, en):
    assert (spell.ordinal(n, "de"), spell.ordinal(n, "en")) == (de, en)


def test_every_ordinal_is_made_of_its_number():
    irregular = {"first": "one", "second": "two", "third": "three", "fifth": "five",
                 "eighth": "eight", "ninth": "nine", "twelfth": "twelve"}  # fmt: skip
    for n in range(1, 1000):
        *start, last = spell.ordinal(n, "en").replace("-", " ").split()
        last = irregular.get(last) or last.removesuffix("th")
        last = last[:-2] + "y" if last.endswith("ie") else last
        assert read_english(" ".join([*start, last])) == n
        german = spell.ordinal(n, "de").removesuffix("te")
        stems = {"ers": "eins", "drit": "drei", "sieb": "sieben", "ach": "acht"}
        for ending, full in stems.items():
            if german.endswith(ending):
                german = german.removesuffix(ending) + full
                break
        else:
            german = german.removesuffix("s") if n % 100 == 0 or n % 100 > 19 else german
        assert read_german("ein" + german if german == "hundert" else german) == n


def test_years_read_back_as_the_year():
    for y in range(1100, 2100):
        assert read_german(spell.year(y, "de")) == y
        words = spell.year(y, "en")
        if "thousand" in words or words.endswith(" hundred"):
            assert read_english(words) == y
        else:
            century, rest = words.split(" ", 1)
            assert read_english(century) * 100 + read_english(rest.removeprefix("oh-")) == y


@pytest.mark.parametrize(
    "units, subunits, currency, de, en",
    [
        (1, 0, "EUR", "einen euro", "one euro"),
        (1, 0, "GBP", "ein britisches pfund", "one british pound"),
        (1, 1, "USD", "einen us-dollar und einen cent", "one us dollar and one cent"),
        (2, 1, "GBP", "zwei britische pfund und einen penny", "two british pounds and one penny"),
        (0, 21, "EUR", "einundzwanzig cent", "twenty-one cents"),
        (3, 2, "GBP", "drei britische pfund und zwei pence", "three british pounds and two pence"),
        (100, 0, "CHF", "einhundert schweizer franken", "one hundred swiss francs"),
        (21, 0, "EUR", "einundzwanzig euro", "twenty-one euros"),
    ],
)
def test_money_has_the_article_and_the_plural_of_its_language(units, subunits, currency, de, en):
    spelled = tuple(spell.money(units, subunits, currency, lang) for lang in ("de", "en"))
    assert spelled == (de, en)


@pytest.mark.parametrize("units, subunits", [(0, 0), (101, 0), (2001, 5)])
def test_amounts_without_a_settled_form_are_refused(units, subunits):
    with pytest.raises(ValueError, match=f"{units} units and {subunits} subunits"):
        spell.money(units, subunits, "EUR", "de")


def test_weekdays_are_those_of_the_calendar():
    for ordinal in range(datetime.date(1900, 1, 1).toordinal(), 730_000, 97):
        date = datetime.date.fromordinal(ordinal)
        # Zeller's congruence counts January and February to the year before; 0 is Saturday
        early = date.month <= 2
        month, year = date.month + 12 * early, date.year - early
        shift = date.day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400
        for lang in ("de", "en"):
            assert spell.weekday(date, lang) == _WEEKDAYS[lang].split()[shift % 7]


def test_dates_stand_in_the_order_of_their_language():
    date = datetime.date(1984, 3, 1)
    assert spell.long_date(date, "de", "n") == "ersten märz neunzehnhundertvierundachtzig"
    assert spell.long_date(date, "en", "") == "march first , nineteen eighty-four"
    assert spell.month_day(date, "de") == "erste märz"
    assert spell.month_day(date, "en") == "march first"


def minutes_of_english_time(words: str) -> int:
    """Minutes since midnight of a time such as `three oh-five in the afternoon`."""
    if words in ("noon", "midnight"):
        return {"noon": 720, "midnight": 0}[words]
    hour, rest = words.split(" ", 1)
    for period, afternoon in (("in the morning", 0), ("in the afternoon", 1),
                              ("in the evening", 1), ("at night", 1)):  # fmt: skip
        if rest.endswith(period):
            minutes = rest.removesuffix(period).strip()
            minute = 0 if minutes == "o 'clock" else read_english(minutes.removeprefix("oh-"))
            return (read_english(hour) % 12 + 12 * afternoon) * 60 + minute
    raise AssertionError(words)


def test_times_of_the_day_read_back_as_the_time():
    for minutes in range(24 * 60):
        german, english = (spell.clock_time(*divmod(minutes, 60), lang) for lang in ("de", "en"))
        hour, _, minute = german.partition(" uhr")
        assert read_german(hour) * 60 + (read_german(minute.strip()) if minute else 0) == minutes
        assert minutes_of_english_time(english) == minutes


def minutes_of_spoken_time(words: str, lang: str) -> int:
    """Minutes after twelve of a time such as `fünf vor halb vier`, `twenty-five past three`."""
    before, after, half, quarter = {
        "de": (" vor ", " nach ", "halb ", "viertel"),
        "en": (" to ", " past ", "half past ", "a quarter"),
    }[lang]
    read = read_german if lang == "de" else read_english

    def anchor(text: str) -> int:
        if text.startswith(half):
            return read(text.removeprefix(half)) * 60 + (-30 if lang == "de" else 30)
        return read(text) * 60

    def amount(text: str) -> int:
        return 15 if text == quarter else read(text)

    if words.startswith(half):
        return anchor(words) % 720
    for word, sign in ((before, -1), (after, 1)):
        if word in words:
            left, right = words.split(word)
            return (anchor(right) + sign * amount(left)) % 720
    raise AssertionError(words)


def test_spoken_times_read_back_as_the_time():
    for hour in range(1, 13):
        for minute in range(5, 60, 5):
            for lang in ("de", "en"):
                words = spell.spoken_time(hour, minute, lang)
                assert minutes_of_spoken_time(words, lang) == hour % 12 * 60 + minute


@pytest.mark.parametrize(
    "hour, minute, de, en",
    [
        (12, 30, "halb eins", "half past twelve"),
        (12, 55, "fünf vor eins", "five to one"),
        (1, 15, "viertel nach eins", "a quarter past one"),
        (3, 25, "fünf vor halb vier", "twenty-five past three"),
        (3, 35, "fünf nach halb vier", "twenty-five to four"),
    ],
)
def test_spoken_times_are_the_usual_ones(hour, minute, de, en):
    spoken = tuple(spell.spoken_time(hour, minute, lang) for lang in ("de", "en"))
    assert spoken == (de, en)


@pytest.mark.parametrize(
    "function, value, accepted",
    [
        (spell.cardinal, -1, "0 to 999999"),
        (spell.cardinal, 1_000_000, "0 to 999999"),
        (spell.ordinal, 0, "1 to 999"),
        (spell.year, 1066, "1100 to 2099"),
    ],
)
def test_what_num2words_gets_wrong_is_refused(function, value, accepted):
    with pytest.raises(ValueError, match=f"must be from {accepted}, got {value}"):
        function(value, "de")


@pytest.fixture(scope="module")
def parts() -> dict[str, list[corpus.Pair]]:
    return corpus.build(SIZES, seed=1)


def test_the_corpus_has_the_sizes_and_all_kinds(parts):
    assert {part: len(its) for part, its in parts.items()} == SIZES
    for its in parts.values():
        assert {pair.kind for pair in its} == set(corpus.KINDS)


def test_nothing_of_the_test_set_was_seen_in_training(parts):
    for attribute in ("value", "de", "en"):
        seen = {part: {getattr(pair, attribute) for pair in its} for part, its in parts.items()}
        assert not seen["train"] & seen["test"]
        assert not seen["train"] & seen["valid"]
        assert not seen["valid"] & seen["test"]


@pytest.mark.parametrize("lang", corpus.LANGUAGES)
def test_no_sentence_comes_twice(parts, lang):
    sentences = [getattr(pair, lang) for its in parts.values() for pair in its]
    assert len(set(sentences)) == len(sentences)


def test_a_sentence_has_one_translation_and_comes_from_one_value():
    german: dict[str, tuple[str, str]] = {}
    english: dict[str, tuple[str, str]] = {}
    for pair in islice(corpus.pairs(2), 20_000):
        assert german.setdefault(pair.de, (pair.en, pair.value)) == (pair.en, pair.value)
        assert english.setdefault(pair.en, (pair.de, pair.value)) == (pair.de, pair.value)


def test_sentences_are_tokenised_and_lower_cased_as_moses_would(parts):
    moses = pytest.importorskip("sacremoses").MosesTokenizer
    for lang in corpus.LANGUAGES:
        tokenizer = moses(lang=lang)
        for pair in parts["test"]:
            sentence = getattr(pair, lang)
            raw = sentence.replace("o 'clock", "o'clock")
            assert tokenizer.tokenize(raw, escape=False, return_str=True).lower() == sentence


def test_every_slot_is_filled_with_words(parts):
    letters = set("abcdefghijklmnopqrstuvwxyzäöüß -',.?")
    for its in parts.values():
        for pair in its:
            assert set(pair.de + pair.en) <= letters
            assert "  " not in pair.de + pair.en


def test_the_corpus_is_a_function_of_the_seed(parts):
    assert corpus.build(SIZES, seed=1) == parts
    assert corpus.build(SIZES, seed=2) != parts


def test_the_command_writes_the_same_corpus_in_another_process(parts, tmp_path):
    sizes = [f"--{part}={size}" for part, size in SIZES.items()]
    done = run_module("examples.quickstart.corpus", "--out", tmp_path, *sizes, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    for part, its in parts.items():
        for lang in corpus.LANGUAGES:
            lines = (tmp_path / f"{part}.{lang}").read_text(encoding="utf-8").splitlines()
            assert lines == [getattr(pair, lang) for pair in its]
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("part, size", [("train", 0), ("valid", -3), ("test", 60_000)])
def test_a_size_out_of_range_gets_a_sentence(part, size):
    with pytest.raises(UserError, match=rf"--{part} must be from 1 to \d+ .*, got {size}"):
        corpus.build({**SIZES, part: size}, seed=1)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--updates", "0"], "--updates must be >= 1, got 0"),
        (["--threads", "-1"], "--threads must be >= 1, got -1"),
        (["--max-tokens", "0"], "--max-tokens must be >= 1, got 0"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--lr", "0"], "--lr must be > 0, got 0.0"),
        (["--arms", "gumbel,gru"], "--arms takes gumbel, sharpened, sigmoid, lstm, each once"),
        (["--arms", "lstm,lstm"], "each once, got lstm,lstm"),
    ],
)
def test_a_bad_option_gets_a_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_arguments(arguments)


def test_smoke_sizes_give_way_to_options():
    assert parse_arguments(["--smoke"]).updates == 40
    assert parse_arguments(["--smoke", "--updates", "7"]).updates == 7


RECIPE = arms.Recipe(
    updates=20, embed=8, units=8, lr=0.01, max_tokens=200, save_interval=10, seed=1
)  # fmt: skip


def test_the_arms_differ_in_nothing_but_the_gates():
    commands = {
        arm: set(arms.train_command(arm, RECIPE, Path("data"), Path("out"))) for arm in arms.ARMS
    }
    common = set.intersection(*commands.values())
    log = "--gate-log-interval=100"  # which changes no training
    assert {arm: command - common - {log} for arm, command in commands.items()} == {
        "lstm": {"--arch=lstm", "--criterion=cross_entropy"},
        **{
            gate: {"--arch=g2lstm", f"--gate-type={gate}", "--criterion=g2lstm_cross_entropy"}
            for gate in ("gumbel", "sharpened", "sigmoid")
        },
    }


def test_progress_reads_fairseqs_log():
    line = '2026-01-01 | INFO | train_inner | {"epoch": 1, "loss": "6.8", "num_updates": "30"}\n'
    assert arms.updates_and_loss(line) == (30, "6.8")
    assert arms.updates_and_loss('… | INFO | train | {"train_num_updates": "30"}\n') is None
    assert arms.updates_and_loss("… | INFO | train_inner | {cut off\n") is None


def test_the_table_tells_what_each_arm_was_trained_on():
    ours = machine(threads=2)
    other = {**ours, "processor": "Another", "threads": 4}
    unsaid = "Finished by an earlier version, which did not say on what."
    gumbel, lstm = arms.ARMS["gumbel"], arms.ARMS["lstm"]
    for trained_on, told in (
        ([ours, ours], f"seed 7. {sentence(ours)}"),
        ([ours, other], f"seed 7. {gumbel}: {sentence(ours)} {lstm}: {sentence(other)}"),
        ([None, ours], f"seed 7. {gumbel}: {unsaid} {lstm}: {sentence(ours)}"),
    ):
        rows = [
            report.Row(arm, 1, 1, {"input": 1, "forget": 1}, {}, 1, 1, where)
            for arm, where in zip(("gumbel", "lstm"), trained_on, strict=True)
        ]
        where = {**ours, "seed": 7, "command": "c"}
        assert f"pairs, {told}\n" in report.markdown(rows, "s", {"test": 1, "train": 1}, 1, where)


@pytest.mark.slow
def test_one_quickstart_at_a_time_writes_to_a_folder(tmp_path):
    with held_folder(tmp_path / "new", "quickstart"):
        done = run_module("examples.quickstart.run", "--out", tmp_path / "new")
    assert done.returncode == 1
    said = f"error: another quickstart is running in {tmp_path / 'new'}; end it first, or give another folder\n"
    assert done.stderr.endswith(said)
    with held_folder(tmp_path / "new", "quickstart"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_what_the_quickstart_started_holds_the_folder_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    # as it is left behind by one that was killed
    holder = f"""
import os, pathlib
from examples.common.files import held_folder
from examples.quickstart import arms
with held_folder(pathlib.Path({str(tmp_path)!r}), "quickstart"):
    with arms._running(["python", "-c", "import time; time.sleep(600)"], 1) as process:
        print(process.pid, flush=True)
        os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", holder], cwd=ROOT, capture_output=True, text=True)
    pid = int(done.stdout)
    try:
        with pytest.raises(UserError, match="another quickstart is running"), held_folder(tmp_path, "quickstart"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_folder_that_is_given_back_within_seconds_is_waited_for(tmp_path):
    holder = f"""
import pathlib, time
from examples.common.files import held_folder
with held_folder(pathlib.Path({str(tmp_path)!r}), "quickstart"):
    print("held", flush=True)
    time.sleep(1)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        with held_folder(tmp_path, "quickstart"):
            pass


def test_a_finished_training_may_be_moved_and_another_recipe_is_another_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arms, "_run", lambda command, threads, log, mode, watch: None)
    recipe = arms.Recipe(updates=1, embed=2, units=2, lr=0.1, max_tokens=9, save_interval=1, seed=1)
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "data-bin").mkdir(parents=True)
    (first / "data-bin" / "train.bin").write_bytes(b"text")

    def train_in(out: Path, recipe: arms.Recipe) -> str:
        arms.train("lstm", recipe, out / "data-bin", out / "lstm", 1, 0, 0)
        return capsys.readouterr().out

    train_in(first, recipe)
    checkpoint = second / "lstm" / "checkpoint_best.pt"
    (first / "lstm" / "checkpoint_best.pt").touch()
    first.rename(second)
    monkeypatch.setattr(arms, "device_options", lambda: ())  # as if there were a GPU now
    assert "finished before, kept" in train_in(second, recipe) and checkpoint.exists()
    assert "so it starts over" in train_in(second, replace(recipe, lr=0.2)) and not checkpoint.exists()
    checkpoint.touch()
    (second / "data-bin" / "train.bin").write_bytes(b"another")
    assert "so it starts over" in train_in(second, replace(recipe, lr=0.2)) and not checkpoint.exists()


def test_without_matplotlib_there_is_a_table_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        report.draw_gates([], tmp_path / "gates.png")
    program = "import sys; sys.modules['matplotlib'] = None; import examples.quickstart.report"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def run_quickstart(out: Path, *more: str) -> subprocess.CompletedProcess:
    options = ["--smoke", "--threads", 1, "--out", out, *more]
    return run_module("examples.quickstart.run", *options, timeout=None)


@pytest.mark.slow
def test_the_whole_quickstart_runs_and_a_second_call_repeats_nothing(tmp_path):
    done = run_quickstart(tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in result["rows"]] == list(arms.ARMS)
    for row in result["rows"]:
        assert 0 <= row["exact"] <= 1 and 0 <= row["bleu"] <= 100 and row["seconds"] > 0
        assert row["parameters"] == result["rows"][0]["parameters"] > 10_000
        for kind in ("input", "forget"):
            assert 0 <= row["saturated"][kind] <= 1
            assert sum(row["histograms"][kind]) > 0
        assert row["machine"].items() <= result["environment"].items()
    assert "tok:none" in result["signature"]
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert all(name in table for name in [*arms.ARMS.values(), result["signature"]])
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.count("python -m fairseq_cli.train") == 4

    again = run_quickstart(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "fairseq_cli" not in again.stdout
    assert again.stdout.count("finished before, kept") == 4
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == table
    assert table.count("cores, ") == 1

    options = ["--quickstart", tmp_path, "--out", tmp_path / "report"]
    report = run_module("examples.gates.run", *options, timeout=None)
    assert report.returncode == 0, report.stderr
    assert all(f"{arm}: read 40 sentences" in report.stderr for arm in arms.ARMS)


@pytest.mark.slow
def test_a_terminated_training_goes_on_and_another_recipe_starts_over(tmp_path):
    # fairseq copies a checkpoint to checkpoint_last.pt, which must not be cut off here: saves are rare and waited for
    options = ["--arms", "lstm", "--updates", "120", "--save-interval", "30"]
    command = [sys.executable, "-m", "examples.quickstart.run", "--smoke", "--threads", "1", *options]
    command += ["--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = tmp_path / "lstm" / "train.log"
    try:
        deadline = time.monotonic() + 300
        while not (log.exists() and "(writing took" in log.read_text(encoding="utf-8")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert not (tmp_path / "lstm" / "finished.json").exists()

    resumed = run_quickstart(tmp_path, *options)
    assert resumed.returncode == 0, resumed.stderr
    assert "lstm: goes on from" in resumed.stdout
    assert "Loaded checkpoint" in log.read_text(encoding="utf-8")

    other = run_quickstart(tmp_path, *options, "--lr", "0.01")
    assert other.returncode == 0, other.stderr
    assert "lstm: its options or its data changed, so it starts over" in other.stdout
