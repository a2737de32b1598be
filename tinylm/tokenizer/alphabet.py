"""GPT-2's order of the 256 bytes, and the printable characters that name them in files.

b" the\\n"  is written  "ĠtheĊ"
"""

# The bytes that are printable in Latin-1 come first. A byte's id is its index in BYTES.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = bytes([*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)])
BYTE_IDS = bytes(BYTES.index(byte) for byte in range(256))  # table for bytes.translate: bytes to ids
# The name of each id. A printable byte is its own name.
ALPHABET = "".join(map(chr, PRINTABLE)) + "".join(chr(256 + number) for number in range(256 - len(PRINTABLE)))


def printable(piece: bytes) -> str:
    """The name of a token: its bytes as printable characters."""
    return piece.translate(BYTE_IDS).decode("latin-1").translate(ALPHABET)
