"""Properties of byte pair encoding."""

from tinylm.tokenizer.textbook import learn_merges, merge_word

CHAPTER = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
TEXT = b"the cat sat on the mat and the rat that the cat ate sat on the hat of the other cat"


def counted(words):
    """Words as tuples of bytes."""
    return {tuple(word): count for word, count in words.items()}


def library(words, num_merges):
    """The merges that tinylm learns."""
    return learn_merges(counted(words), num_merges, [bytes([i]) for i in range(256)])


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    text = {word: TEXT.split().count(word) for word in TEXT.split()}
    merges = library(text, 12)
    tokens = {pair: 256 + i for i, pair in enumerate(merges)}
    chapter = library(CHAPTER, 6)

    yield (
        "{(1, 1, 2): 3, (1, 2): 5} has (1, 1) 3 times and (1, 2) 8 times",
        {(1, 1): 3, (1, 2): 8},
        lambda: dict(mine.count_pairs({(1, 1, 2): 3, (1, 2): 5})),
        "a word that occurs three times has each of its pairs three times; `itertools.pairwise` gives neighbours",
    )
    yield (
        "merging (1, 1) into 9 makes (9, 1, 2) of (1, 1, 1, 2)",
        (9, 1, 2),
        lambda: mine.merge((1, 1, 1, 2), (1, 1), 9),
        "from left to right; a token that has been merged is used up",
    )
    yield (
        "every occurrence is merged",
        (9, 3, 9, 9),
        lambda: mine.merge((1, 2, 3, 1, 2, 1, 2), (1, 2), 9),
        "go on after a merge, two tokens further",
    )
    yield (
        "a word without the pair stays as it is",
        (2, 1, 2, 2),
        lambda: mine.merge((2, 1, 2, 2), (1, 1), 9),
        "the order of the pair counts, and the last token has no right neighbour",
    )
    yield (
        "the first merge of the chapter's words is (101, 115), es, and the second (256, 116), est",
        [(101, 115), (256, 116)],
        lambda: mine.learn(counted(CHAPTER), 2),
        "es and st occur nine times each; the smaller pair is taken; then 256 is a token like all others",
    )
    yield (
        "its six merges are those of tinylm",
        chapter,
        lambda: mine.learn(counted(CHAPTER), 6),
        "count the pairs anew after every merge",
    )
    yield (
        "twelve merges of a text are those of tinylm",
        merges,
        lambda: mine.learn(counted(text), 12),
        "sort by (-count, pair), so that ties go to the smaller pair",
    )
    yield (
        "learning stops when no pair is left",
        [(97, 98), (256, 99)],
        lambda: mine.learn(counted({b"abc": 1, b"d": 4}), 10),
        "a word of one token has no pairs",
    )
    yield (
        '"lowest", which is not in the text, becomes low and est',
        [259, 257],
        lambda: list(mine.encode(b"lowest", chapter)),
        "apply each merge in turn to the whole word",
    )
    yield (
        'with the merges bc and ab, "abc" is a and bc',
        [97, 256],
        lambda: list(mine.encode(b"abc", [(98, 99), (97, 98)])),
        "in the order in which they were learned, not from left to right",
    )
    yield (
        "the words of a text have the tokens of tinylm",
        [merge_word(list(word), tokens) for word in TEXT.split()],
        lambda: [list(mine.encode(word, merges)) for word in TEXT.split()],
        "",
    )
    yield (
        'with the merges (97, 98) and (256, 99), [257, 100] is b"abcd"',
        b"abcd",
        lambda: bytes(mine.decode([257, 100], [(97, 98), (256, 99)])),
        "257 is 256 and 99, and 256 is 97 and 98",
    )
    yield (
        "decode undoes encode, for bytes that no merge knows, too",
        "naïve cats".encode(),
        lambda: bytes(mine.decode(list(mine.encode("naïve cats".encode(), merges)), merges)),
        "",
    )
