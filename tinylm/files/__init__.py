"""Atomic writes, checksums, locks and reading, for checkpoints, model folders, tokenizers and caches."""

from tinylm.files.atomic import (
    TEMPORARY,
    atomic_folder,
    atomic_write,
    full_disk,
    make_folder,
    sweep,
    write_json,
    write_text,
)
from tinylm.files.cache import default_cache_dir
from tinylm.files.checksums import check_seal, seal_zip, sha256_bytes, sha256_file, sha256_json
from tinylm.files.in_place import append_text, locked, replace_end, sync_file
from tinylm.files.reading import (
    check_utf8,
    decode,
    decode_blocks,
    file_size,
    open_input,
    parse_json,
    read_chunks,
    read_json,
    read_range,
    why_unreadable,
)

__all__ = [
    "TEMPORARY",
    "append_text",
    "atomic_folder",
    "atomic_write",
    "check_seal",
    "check_utf8",
    "decode",
    "decode_blocks",
    "default_cache_dir",
    "file_size",
    "full_disk",
    "locked",
    "make_folder",
    "open_input",
    "parse_json",
    "read_chunks",
    "read_json",
    "read_range",
    "replace_end",
    "seal_zip",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "sweep",
    "sync_file",
    "why_unreadable",
    "write_json",
    "write_text",
]
