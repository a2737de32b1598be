"""Properties of a character tokenizer."""

from tinylm.tokenizer import CharTokenizer


def refuses(call):
    """Whether a call raises KeyError or ValueError."""
    try:
        call()
    except (KeyError, ValueError):
        return True
    return False


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    make = mine.CharTokenizer
    text = "What's in a name? 3 naïve letters;\n\tor four."
    theirs = CharTokenizer.train_from_texts([text])

    yield (
        'the vocabulary of "hello world" is sorted and has each character once',
        list(" dehlorw"),
        lambda: list(make("hello world").characters),
        "a set has each character once; `sorted` puts them in order and gives a list",
    )
    yield (
        'the ids of "hello" in this vocabulary are those of the chapter',
        [3, 2, 4, 4, 5],
        lambda: make("hello world").encode("hello"),
        "ids are indices in the vocabulary; the first character has the id 0",
    )
    yield (
        "the ids of a longer text are those of tinylm's CharTokenizer",
        theirs.encode(text),
        lambda: make(text).encode(text),
        "line breaks, digits and punctuation are characters like all others",
    )
    yield (
        "decode undoes encode",
        text,
        lambda: make(text).decode(make(text).encode(text)),
        "join the characters of the ids without anything between them",
    )
    yield (
        "an empty text has no ids",
        ([], ""),
        lambda: (make("ab").encode(""), make("ab").decode([])),
        "",
    )
    yield (
        "a character outside the vocabulary raises KeyError or ValueError",
        True,
        lambda: refuses(lambda: make("hello world").encode("help")),
        "a dictionary raises KeyError by itself; `str.find` gives -1, which is the id of the last character",
    )
    yield (
        "the window of 3 at 1 of [5, 6, 7, 8, 9] has the inputs [6, 7, 8]",
        [6, 7, 8],
        lambda: list(mine.window([5, 6, 7, 8, 9], 1, 3)[0]),
        "a slice ends before its second number",
    )
    yield (
        "its targets are [7, 8, 9]",
        [7, 8, 9],
        lambda: list(mine.window([5, 6, 7, 8, 9], 1, 3)[1]),
        "the target of an input is the id after it: the same slice, one further on",
    )
    yield (
        "the last window of a text is complete",
        ([5, 6], [6, 7]),
        lambda: tuple(list(each) for each in mine.window([5, 6, 7], 0, 2)),
        "",
    )
