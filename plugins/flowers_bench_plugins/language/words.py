"""The words that the text tower knows: those by which drawn species are described."""

from __future__ import annotations

from collections.abc import Sequence

from flowers_bench import UsageError

#: In this order for good: a word's number is its place. New ones go to the end.
WORDS = tuple(
    word
    for line in (
        "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
        "thin narrow middling broad wide blunt round oval pointed sharp petals notched whole touching near parted",
        "white pale deep fading early evenly late from plain veined spotted edged eyed single double triple",
        "tiny small medium large huge dark dull bright smooth grainy disc leaves ground",
        "red scarlet orange golden yellow lime leafgreen green teal azure blue indigo violet purple magenta pink crimson",
    )
    for word in line.split()
)
#: Numbers from 1 on; 0 fills up shorter texts.
NUMBERS = {word: number for number, word in enumerate(WORDS, start=1)}
#: A text has at most this many words.
LONGEST = 32


def tokens_of(texts: Sequence[str]) -> list[list[int]]:
    """Turn C texts into the numbers of their words, each filled up with zeros to `LONGEST`.

    Raises:
        UsageError: a text is empty or too long, or has a word that the tower does not know.
    """
    found = []
    for text in texts:
        words = text.replace(",", " ").lower().split()
        unknown = [word for word in words if word not in NUMBERS]
        if unknown:
            raise UsageError(
                f"{text[:80]!r}: the text tower does not know {unknown[0]!r}. It was trained on drawn flowers alone and knows "
                f"{len(WORDS)} words that describe them: {', '.join(WORDS[:6])} ... {WORDS[-1]}. Techniques with language run on "
                "--data petals."
            )
        if not 0 < len(words) <= LONGEST:
            raise UsageError(f"{text[:80]!r} has {len(words)} words; the text tower takes 1 to {LONGEST}.")
        found.append([*(NUMBERS[word] for word in words), *([0] * (LONGEST - len(words)))])
    return found
