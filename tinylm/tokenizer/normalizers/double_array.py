"""A trie of strings as a double array (Aoe 1989), in the layout of Darts-clone, which SentencePiece uses.

A unit of the array is a node of the trie, in 32 bits:

    bits 0-7    label: the byte that leads to the node
    bit 8       whether a string ends here; the unit at the node's base then holds its value, with bit 31 set
    bits 9-31   offset: the base is the node's index XOR the offset (times 256 if bit 9 is set)

The child of a node by byte c is the unit at base XOR c, if its label is c. This file identifies nodes by their bases.
An array may come from an untrusted file: indices are checked, strings must be UTF-8, and checking takes bounded time.
"""

import numpy as np

from tinylm.errors import ConfigError

LEAF = 1 << 31  # marks a unit that holds a value
LABELS = np.arange(1, 256)
MOST_VISITS = 1 << 17  # node visits while a table is checked; NFKC's table needs 25,000
NOWHERE = -1
DAMAGED = "precompiled_charsmap: is damaged"


class DoubleArray:
    """A trie of strings in UTF-8.

    Args:
        data: the units, little-endian

    Attributes:
        root: the base of the first node
    """

    def __init__(self, data: bytes) -> None:
        self._array = np.frombuffer(data, dtype="<u4").astype(np.int64)
        self._units: list[int] = self._array.tolist()
        self.root, self._visits = self._base(0), 0

    def _base(self, node: int) -> int:
        unit = self._units[node]
        return node ^ ((unit >> 10) << ((unit >> 6) & 8))

    def value(self, base: int) -> int:
        """The value of the string that ends at a node."""
        return self._units[base] & (LEAF - 1)

    def step(self, base: int, character: str) -> tuple[int, bool]:
        """The node that a character leads to, or NOWHERE, and whether a string ends there."""
        node = 0
        for byte in character.encode("utf-8", "surrogatepass"):
            node = base ^ byte
            if not byte or node >= len(self._units) or self._units[node] & (LEAF | 0xFF) != byte:
                return NOWHERE, False
            base = self._base(node)
        return base, bool(self._units[node] >> 8 & 1)

    def has_children(self, base: int) -> bool:
        """Whether a node has children."""
        return bool(((self._array.take(base ^ LABELS, mode="clip") & (LEAF | 0xFF)) == LABELS).any())

    # --- all nodes at once

    def characters_from(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The steps by one character from any of these nodes.

        Args:
            nodes: bases, int64 (n,)

        Returns:
            code points, int64 (m,); the bases of the nodes they lead to, (m,); the values of the strings that end
            there, or -1, (m,)

        Raises:
            ConfigError: if the array is damaged, or has too many nodes.
        """
        found = [np.empty((3, 0), dtype=np.int64)]
        points, left = np.zeros(len(nodes), np.int64), np.full(len(nodes), -1)  # left: bytes of the character to come
        while len(nodes):
            rows, labels, nodes, values = self._children(nodes)
            points, left = _next_byte(points[rows], left[rows], labels)
            whole = left == 0
            wrong = ((points >> 11 == 0x1B) | (points >= 0x110000)) & whole
            if (left < 0).any() or (values[~whole] >= 0).any() or wrong.any():
                raise ConfigError(f"{DAMAGED}, it replaces what is not UTF-8")
            found.append(np.stack([points[whole], nodes[whole], values[whole]]))
            nodes, points, left = nodes[~whole], points[~whole], left[~whole]
        points, nodes, values = np.concatenate(found, axis=1)
        return points, nodes, values

    def continued(self, nodes: np.ndarray) -> np.ndarray:
        """Whether each node has children, bool (n,)."""
        found = np.zeros(len(nodes), dtype=bool)
        found[self._children(nodes)[0]] = True
        return found

    def _children(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The children of nodes: the index of their parent, their labels, bases and values."""
        self._visits += len(nodes)
        if self._visits > MOST_VISITS:
            raise ConfigError(f"{DAMAGED}, its strings have no end")
        size = len(self._array)
        rows_of, found = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for begin in range(0, len(nodes), 4096):
            places = nodes[begin : begin + 4096, None] ^ LABELS
            fits = self._array.take(places, mode="clip") & (LEAF | 0xFF) == LABELS
            rows, columns = np.nonzero(fits & (places < size))
            rows_of.append(rows + begin)
            found.append(places[rows, columns])
        rows, places = np.concatenate(rows_of), np.concatenate(found)
        units = self._array[places]
        bases = places ^ ((units >> 10) << ((units >> 6) & 8))
        if (bases >= size).any():
            raise ConfigError(f"{DAMAGED}, a node lies outside the trie")
        return rows, units & 0xFF, bases, np.where(units >> 8 & 1, self._array[bases] & (LEAF - 1), -1)


def _next_byte(points: np.ndarray, left: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code points after one more byte of UTF-8, and the number of bytes each still needs; -1 for an invalid byte.

    Args:
        points: the bits of each code point so far, int64 (n,)
        left: the bytes that it still needs, (n,); -1 before its first byte
        labels: the bytes, (n,)
    """
    lead = left < 0
    bounds = [labels < 0x80, labels < 0xC2, labels < 0xE0, labels < 0xF0, labels < 0xF5]
    needs = np.select(bounds, [0, -1, 1, 2, 3], -1)
    first = labels & (0x7F >> np.where(needs > 0, needs + 1, 0))
    more = np.where(labels & 0xC0 == 0x80, left - 1, -1)
    return np.where(lead, first, points << 6 | labels & 0x3F), np.where(lead, needs, more)
