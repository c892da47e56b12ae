"""An endless German-English corpus of spelled-out numbers, money, dates and times.

Every sentence is a template in both languages, filled with a drawn value that `spell` puts into
words; lower-cased, tokenised as Moses would. No German sentence has two translations, and the
split into train, valid and test goes by the value: each belongs to one of the three.

    python -m examples.quickstart.corpus --out DIR [--train N --valid N --test N --seed N]
"""

import datetime
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from examples.common.errors import UserError, run_main
from examples.common.files import atomic_writers
from examples.common.options import docstring_parser
from examples.common.preprocess import sides
from examples.quickstart import spell

LANGUAGES: tuple[str, str] = ("de", "en")
LARGEST = {"train": 1_000_000, "valid": 50_000, "test": 50_000}
_FIRST_DATE = datetime.date(1900, 1, 1)
_DATES = (datetime.date(2025, 1, 1) - _FIRST_DATE).days

Slots = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation.

    Attributes:
        kind: what is spelled out, a key of KINDS.
        value: the underlying value, as text; the split goes by it.
        de: the German sentence, lower-cased, tokens separated by blanks.
        en: the English sentence, likewise.
    """

    kind: str
    value: str
    de: str
    en: str


def _both(**slots: Callable[[str], str]) -> Slots:
    return {lang: {name: spelled(lang) for name, spelled in slots.items()} for lang in LANGUAGES}


def _draw_cardinal(random: Random) -> int:
    digits = random.randint(1, 6)  # as many small numbers as large ones
    return random.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _number(random: Random) -> tuple[str, Slots]:
    n = _draw_cardinal(random)
    slots = _both(n=lambda lang: spell.cardinal(n, lang))
    for lang, parity in (("de", ("gerade", "ungerade")), ("en", ("even", "odd"))):
        slots[lang]["parity"] = parity[n % 2]
    return f"cardinal {n}", slots


def _count(random: Random) -> tuple[str, Slots]:
    while not spell.countable(n := _draw_cardinal(random)):
        pass
    return f"cardinal {n}", _both(n=lambda lang: spell.cardinal(n, lang))


def _ordinal(random: Random) -> tuple[str, Slots]:
    n = random.randint(1, 10 ** random.randint(1, 3) - 1)
    return f"ordinal {n}", _both(n=lambda lang: spell.ordinal(n, lang))


def _year(random: Random) -> tuple[str, Slots]:
    y = random.randint(1100, 2024)
    return f"year {y}", _both(y=lambda lang: spell.year(y, lang))


def _period(random: Random) -> tuple[str, Slots]:
    first, last = sorted(random.sample(range(1100, 2025), 2))
    return f"period {first}-{last}", _both(
        first=lambda lang: spell.year(first, lang), last=lambda lang: spell.year(last, lang)
    )


def _money(random: Random) -> tuple[str, Slots]:
    units = random.randint(1, 10 ** random.randint(1, 4) - 1)
    if units > 1 and not spell.countable(units):
        units -= 1
    subunits = random.choice((0, random.randint(1, 99)))
    if subunits and random.random() < 0.1:
        units = 0
    currency = random.choice(spell.CURRENCIES_WITH_SUBUNIT if subunits else spell.CURRENCIES)
    return f"money {units}.{subunits:02d}", _both(
        m=lambda lang: spell.money(units, subunits, currency, lang)
    )


def _date_slots(date: datetime.date) -> Slots:
    return _both(
        weekday=lambda lang: spell.weekday(date, lang),
        date=lambda lang: spell.long_date(date, lang),
        date_n=lambda lang: spell.long_date(date, lang, "n"),
        day_n=lambda lang: spell.month_day(date, lang, "n"),
        day=lambda lang: spell.month_day(date, lang),
    )


def _draw_date(random: Random) -> datetime.date:
    return _FIRST_DATE + datetime.timedelta(days=random.randrange(_DATES))


def _date(random: Random) -> tuple[str, Slots]:
    date = _draw_date(random)
    return f"date {date}", _date_slots(date)


def _day(random: Random) -> tuple[str, Slots]:
    date = _draw_date(random)
    return f"day {date:%w %m-%d}", _date_slots(date)


def _time_slots(minutes: int) -> Slots:
    return _both(t=lambda lang: spell.clock_time(*divmod(minutes, 60), lang))


def _time(random: Random) -> tuple[str, Slots]:
    minutes = random.randrange(24 * 60)
    return f"time {minutes}", _time_slots(minutes)


def _spoken(random: Random) -> tuple[str, Slots]:
    hour, minute = random.randint(1, 12), random.randrange(5, 60, 5)
    return f"spoken {hour}:{minute:02d}", _both(
        t=lambda lang: spell.spoken_time(hour, minute, lang)
    )


def _draw_minute_of_a_day(random: Random) -> int:
    return random.randrange(1, 24 * 60)  # "at midnight on Sunday" may be the end of Sunday


def _appointment(random: Random) -> tuple[str, Slots]:
    date, minutes = _draw_date(random), _draw_minute_of_a_day(random)
    slots, time = _date_slots(date), _time_slots(minutes)
    return f"appointment {date:%w} {minutes}", {lang: slots[lang] | time[lang] for lang in slots}


def _moment(random: Random) -> tuple[str, Slots]:
    date, minutes = _draw_date(random), _draw_minute_of_a_day(random)
    slots, time = _date_slots(date), _time_slots(minutes)
    return f"moment {date} {minutes}", {lang: slots[lang] | time[lang] for lang in slots}


# What may be drawn, and the templates for it. A template uses the whole value that its kind is
# split by, or one sentence could come from two values and stand on both sides of the split.
# A German day or ordinal takes the ending n in the dative and accusative.
KINDS: dict[str, tuple[Callable[[Random], tuple[str, Slots]], tuple[tuple[str, str], ...]]] = {
    "number": (
        _number,
        (
            ("die zahl {n} ist {parity} .", "the number {n} is {parity} ."),
            ("die antwort ist {n} .", "the answer is {n} ."),
        ),
    ),
    "count": (
        _count,
        (
            ("gestern kamen {n} gäste an .", "{n} guests arrived yesterday ."),
            ("hier wohnen {n} menschen .", "{n} people live here ."),
        ),
    ),
    "ordinal": (
        _ordinal,
        (
            ("gestern war der {n} tag .", "yesterday was the {n} day ."),
            ("er kam als {n}r an .", "he was the {n} to arrive ."),
        ),
    ),
    "year": (
        _year,
        (
            ("das haus wurde {y} gebaut .", "the house was built in {y} ."),
            ("seit {y} wohnen hier menschen .", "people have lived here since {y} ."),
        ),
    ),
    "period": (
        _period,
        (
            (
                "von {first} bis {last} war hier eine schule .",
                "there was a school here from {first} to {last} .",
            ),
        ),
    ),
    "money": (
        _money,
        (
            ("das buch kostet {m} .", "the book costs {m} ."),
            ("ich habe gestern {m} bezahlt .", "i paid {m} yesterday ."),
        ),
    ),
    "date": (
        _date,
        (
            ("sie wurde am {date_n} geboren .", "she was born on {date} ."),
            ("der {date} war ein {weekday} .", "{date} , was a {weekday} ."),
        ),
    ),
    "day": (
        _day,
        (
            (
                "am {weekday} , dem {day_n} , kommen gäste an .",
                "guests arrive on {weekday} , {day} .",
            ),
        ),
    ),
    "time": (
        _time,
        (
            ("der zug fährt um {t} ab .", "the train leaves at {t} ."),
            ("seit {t} warten wir hier .", "we have been waiting here since {t} ."),
        ),
    ),
    "spoken": (
        _spoken,
        (
            ("das fest fängt um {t} an .", "the party starts at {t} ."),
            ("um {t} kommen wir an .", "we arrive at {t} ."),
        ),
    ),
    "appointment": (
        _appointment,
        (
            ("er kommt am {weekday} um {t} an .", "he arrives at {t} on {weekday} ."),
            ("am {weekday} um {t} fängt das fest an .", "the party starts at {t} on {weekday} ."),
        ),
    ),
    "moment": (
        _moment,
        (
            (
                "am {date_n} kam der zug um {t} an .",
                "the train arrived at {t} on {date} .",
            ),
        ),
    ),
}


def pairs(seed: int) -> Iterator[Pair]:
    """Sentence pairs without end, kinds in equal parts; the same for the same seed.

    The short kinds run out of new sentences, so a pair may come again.
    """
    random = Random(seed)
    kinds = list(KINDS)
    while True:
        kind = random.choice(kinds)
        draw, templates = KINDS[kind]
        value, slots = draw(random)
        de, en = random.choice(templates)
        yield Pair(kind, value, de.format(**slots["de"]), en.format(**slots["en"]))


def split_of(value: str, seed: int) -> str:
    """The part a value belongs to: test for a tenth of all values, valid for a tenth, or train."""
    digest = hashlib.blake2b(f"{seed} {value}".encode(), digest_size=8).digest()
    return {0: "test", 1: "valid"}.get(int.from_bytes(digest, "big") % 10, "train")


def build(sizes: dict[str, int], seed: int) -> dict[str, list[Pair]]:
    """A corpus of the given sizes without repeats.

    Args:
        sizes: sentence pairs in train, valid and test, 1 to LARGEST of each.
        seed: the corpus is a function of seed and sizes.

    Returns:
        The pairs of each part. No German and no English sentence occurs twice, and no value is
        in two parts.

    Raises:
        UserError: a size out of range.
    """
    for part, largest in LARGEST.items():
        if not 1 <= sizes[part] <= largest:
            raise UserError(
                f"--{part} must be from 1 to {largest} sentence pairs, got {sizes[part]}"
            )
    parts: dict[str, list[Pair]] = {part: [] for part in LARGEST}
    seen: dict[str, set[str]] = {lang: set() for lang in LANGUAGES}
    for pair in pairs(seed):
        part = split_of(pair.value, seed)
        if len(parts[part]) == sizes[part] or pair.de in seen["de"] or pair.en in seen["en"]:
            if all(len(parts[name]) == sizes[name] for name in parts):
                break
            continue
        parts[part].append(pair)
        seen["de"].add(pair.de)
        seen["en"].add(pair.en)
    _assert_disjoint(parts)
    return parts


def _assert_disjoint(parts: dict[str, list[Pair]]) -> None:
    total = sum(map(len, parts.values()))
    for attribute in ("de", "en"):
        distinct = {getattr(pair, attribute) for part in parts.values() for pair in part}
        assert len(distinct) == total, f"{total - len(distinct)} repeats among the {attribute} side"
    values = [{pair.value for pair in part} for part in parts.values()]
    assert len(set.union(*values)) == sum(map(len, values)), "a value is in two parts"


def write(parts: dict[str, list[Pair]], folder: Path) -> None:
    """Write PART.de and PART.en, one sentence a line, each pair of files complete or not at all."""
    for part, its_pairs in parts.items():
        with atomic_writers(*sides(folder, part, LANGUAGES)) as (german, english):
            german.writelines(pair.de + "\n" for pair in its_pairs)
            english.writelines(pair.en + "\n" for pair in its_pairs)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = docstring_parser("examples.quickstart.corpus", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the six text files")
    for part, size in (("train", 30_000), ("valid", 500), ("test", 1_000)):
        parser.add_argument(f"--{part}", type=int, default=size, metavar="N",
                            help=f"sentence pairs (default: {size})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    options = parser.parse_args(arguments)
    parts = build({part: getattr(options, part) for part in LARGEST}, options.seed)
    write(parts, options.out)
    print(", ".join(f"{part}: {len(parts[part])} pairs" for part in parts), f"in {options.out}")


if __name__ == "__main__":
    run_main(main)
