"""Tokens as people read them: pieces of words put together again, starts and ends named."""

from collections.abc import Iterable
from typing import NamedTuple

from fairseq.data import Dictionary

START, END = "⟨start⟩", "⟨end⟩"
CONTINUES = "@@"  # subword-nmt's mark: the word goes on with the next piece
_BEGINS = "▁"  # sentencepiece's mark: a word begins here


class Token(NamedTuple):
    """text: without the marks of subword segmentation. joined: whether it goes on the word of the token before it.
    special: whether it stands for a sentence's start or end."""

    text: str
    joined: bool = False
    special: bool = False


def marks_beginnings(symbols: Iterable[str]) -> bool:
    """Whether symbols are pieces of sentencepiece, which mark where words begin, and not where they go on."""
    symbols = list(symbols)
    continues = any(symbol.endswith(CONTINUES) for symbol in symbols)
    return not continues and any(symbol.startswith(_BEGINS) for symbol in symbols)


def readable(dictionary: Dictionary, numbers: Iterable[int], starts: bool = False) -> list[Token]:
    """A sentence's tokens.

    Args:
        numbers: the tokens' numbers in the dictionary.
        starts: whether the first one is the end of sentence that stands before the sentence.
    """
    numbers = list(numbers)
    symbols = [dictionary[number] for number in numbers]
    sentencepiece = marks_beginnings(symbols)
    found: list[Token] = []
    goes_on = False
    for position, (number, symbol) in enumerate(zip(numbers, symbols, strict=True)):
        if number == dictionary.eos():
            found.append(Token(START if starts and position == 0 else END, special=True))
            goes_on = False
        elif sentencepiece:
            begins = symbol.startswith(_BEGINS) or not found or found[-1].special
            found.append(Token(symbol.removeprefix(_BEGINS) or symbol, joined=not begins))
        else:
            piece = symbol.endswith(CONTINUES) and symbol != CONTINUES
            found.append(Token(symbol.removesuffix(CONTINUES) if piece else symbol, joined=goes_on))
            goes_on = piece
    return found


def sentence(tokens: Iterable[Token]) -> str:
    """The words of a sentence in one line, without its start and end."""
    line = "".join(("" if token.joined else " ") + token.text for token in tokens if not token.special)
    return line.strip()
