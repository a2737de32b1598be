"""A character tokenizer: text as numbers, and the windows that training cuts from them (chapter 1)."""


class CharTokenizer:
    """One id for each character.

    Attributes:
        characters: the vocabulary, each character of the training text once, sorted
    """

    def __init__(self, text: str) -> None:
        """Learns the vocabulary of a text.

        Example: the vocabulary of "hello" is e, h, l, o.
        """
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The id of each character, which is its index in the vocabulary.

        Example: with the vocabulary e, h, l, o, the ids of "hole" are [1, 3, 2, 0].

        Raises:
            KeyError or ValueError: for a character that is not in the vocabulary.
        """
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """The text of these ids.

        Example: with the vocabulary e, h, l, o, the text of [1, 3, 2, 0] is "hole".
        """
        raise NotImplementedError


def window(ids: list[int], start: int, context: int) -> tuple[list[int], list[int]]:
    """The inputs and the targets of one training window.

    Args:
        ids: a text, at least start + context + 1 ids
        start: index of the first input
        context: number of inputs

    Returns:
        the inputs and, for each of them, the id that follows it in the text: context ids each

    Example: in [5, 6, 7, 8, 9], the window of 3 that starts at 1 has the inputs [6, 7, 8] and the targets [7, 8, 9].
    """
    raise NotImplementedError
