"""Numbers, years, money, dates and times in words, in German ("de") and English ("en").

The words come from num2words and from the CLDR names and patterns in babel. Both are used only
where they are right; what num2words gets wrong is mended here, or refused:

- German thousands: "einhunderteinstausend" is mended to "einhunderteintausend".
- German counts that end in 01 before a noun ("hundertein Euro", "hunderteinen Euro") have no one
  settled form: `countable` tells which numbers may stand before a noun.
- `to_currency` gives "two euro" and "zero cents": amounts are put together here from number
  words and CLDR's currency names, which know the plural, with the article German needs for 1.
- `to_year` gives "einshundert" and "einundzwanzighundert": years are 1100 to 2099.
- English "one thousand, two hundred": the comma is left out.
"""

import datetime
import re
from functools import cache

from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import get_currency_name
from num2words import num2words

CURRENCIES = ("EUR", "USD", "GBP", "CHF")
_SUBUNIT = {  # one, many; CLDR has no names for subunits
    "de": {"EUR": ("cent", "cent"), "USD": ("cent", "cent"), "GBP": ("penny", "pence")},
    "en": {"EUR": ("cent", "cents"), "USD": ("cent", "cents"), "GBP": ("penny", "pence")},
}
CURRENCIES_WITH_SUBUNIT = tuple(_SUBUNIT["de"])
_OCLOCK = "o 'clock"  # in two tokens, as Moses has it


@cache
def cardinal(n: int, lang: str) -> str:
    """The cardinal number n, 0 to 999,999, in words: `einhundertdrei`, `one hundred and three`."""
    if not 0 <= n < 1_000_000:
        raise ValueError(f"n must be from 0 to 999999, got {n}")
    words = num2words(n, lang=lang)
    return words.replace("einstausend", "eintausend") if lang == "de" else words.replace(",", "")


@cache
def ordinal(n: int, lang: str) -> str:
    """The ordinal of n, 1 to 999: `dreiundzwanzigste` (with its weak ending -e), `twenty-third`."""
    if not 1 <= n < 1000:
        raise ValueError(f"n must be from 1 to 999, got {n}")
    return num2words(n, lang=lang, to="ordinal")


@cache
def year(y: int, lang: str) -> str:
    """The year y, 1100 to 2099: `neunzehnhundertvierundachtzig`, `nineteen eighty-four`."""
    if not 1100 <= y < 2100:
        raise ValueError(f"y must be from 1100 to 2099, got {y}")
    return num2words(y, lang=lang, to="year")


def countable(n: int) -> bool:
    """Whether German has one settled form for n before a plural noun."""
    return n >= 2 and n % 100 != 1


def _amount(n: int, currency: str, lang: str) -> str:
    name = get_currency_name(currency, n, locale=lang).lower()
    if n == 1:
        return ("one " if lang == "en" else "ein " if currency == "GBP" else "einen ") + name
    return f"{cardinal(n, lang)} {name}"


def money(units: int, subunits: int, currency: str, lang: str) -> str:
    """An amount in words, in German in the accusative: `einen euro und zwei cent`.

    Args:
        units: whole units, 0 to 999,999; 0 leaves them out.
        subunits: hundredths, 0 to 99; 0 leaves them out.
        currency: one of CURRENCIES; with subunits one of CURRENCIES_WITH_SUBUNIT.

    Raises:
        ValueError: both are 0, or units are over 1 and end in 01.
    """
    if units + subunits == 0 or not (units < 2 or countable(units)):
        raise ValueError(f"no amount of {units} units and {subunits} subunits can be spelled out")
    parts = [_amount(units, currency, lang)] if units else []
    if subunits:
        one, many = _SUBUNIT[lang][currency]
        few = f"{'einen' if lang == 'de' else 'one'} {one}"
        parts.append(few if subunits == 1 else f"{cardinal(subunits, lang)} {many}")
    return (" und " if lang == "de" else " and ").join(parts)


def weekday(date: datetime.date, lang: str) -> str:
    """The name of the date's day of the week: `donnerstag`, `thursday`."""
    return format_date(date, "EEEE", locale=lang).lower()


def _fill(pattern: str, date: datetime.date, lang: str, ending: str) -> str:
    fields = {
        "d": ordinal(date.day, lang) + ending,
        "MMMM": format_date(date, "MMMM", locale=lang).lower(),
        "y": year(date.year, lang),
    }
    words = re.sub(r"(MMMM|d|y)\.?", lambda match: fields[match[1]], pattern)
    return words.replace(",", " ,")


def long_date(date: datetime.date, lang: str, ending: str = "") -> str:
    """The date in CLDR's long order: `erste märz …`, `march first , …`, year last.

    `ending` is put to the day: "n" for the German dative and accusative.
    """
    return _fill(Locale(lang).date_formats["long"].pattern, date, lang, ending)


def month_day(date: datetime.date, lang: str, ending: str = "") -> str:
    """The date in CLDR's order, without the year: `erste märz`, `march first`."""
    return _fill(Locale(lang).datetime_skeletons["MMMMd"].pattern, date, lang, ending)


@cache
def clock_time(hour: int, minute: int, lang: str) -> str:
    """The time of the railway clock: `fünfzehn uhr fünf`, `three oh-five in the afternoon`.

    English has CLDR's part of the day; 12:00 is `noon` and 0:00 `midnight`.
    """
    if lang == "de":
        hours = "ein" if hour == 1 else cardinal(hour, lang)
        return f"{hours} uhr {cardinal(minute, lang)}" if minute else f"{hours} uhr"
    period = format_time(datetime.time(hour, minute), "BBBB", locale=lang)
    if minute == 0 and hour in (0, 12):
        return period
    minutes = cardinal(minute, lang) if minute > 9 else f"oh-{cardinal(minute, lang)}"
    hours = cardinal((hour - 1) % 12 + 1, lang)
    return f"{hours} {minutes if minute else _OCLOCK} {period}"


def spoken_time(hour: int, minute: int, lang: str) -> str:
    """The time as spoken, twelve hours: `fünf vor halb vier`, `twenty-five past three`.

    Args:
        hour: 1 to 12.
        minute: a multiple of 5, 5 to 55.
    """
    this, following = (cardinal(h, lang) for h in (hour, hour % 12 + 1))
    past = minute if minute <= 30 else 60 - minute
    if lang == "de":
        if minute == 30:
            return f"halb {following}"
        if past == 25:
            return f"fünf {'vor' if minute < 30 else 'nach'} halb {following}"
        amount = "viertel" if past == 15 else cardinal(past, lang)
        return f"{amount} nach {this}" if minute < 30 else f"{amount} vor {following}"
    amount = {15: "a quarter", 30: "half"}.get(past) or cardinal(past, lang)
    return f"{amount} past {this}" if minute <= 30 else f"{amount} to {following}"
