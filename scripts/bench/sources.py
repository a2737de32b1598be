"""Measures how fast files are read: each compression, a local S3, and the fingerprint of a file at a second start.

    python scripts/bench/sources.py [MEGABYTES]

The S3 is moto's, in this process, and takes most of the time itself.
"""

import bz2
import gzip
import logging
import lzma
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import zstandard
from moto.server import ThreadedMotoServer

from tinylm.data.sources import Source

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "txt": bytes,
    "gz": lambda text: gzip.compress(text, 6),
    "zst": zstandard.ZstdCompressor(3).compress,
    "xz": lambda text: lzma.compress(text, preset=1),
    "bz2": bz2.compress,
}


def random_text(megabytes: float) -> bytes:
    """Lines of 40 words of a vocabulary of 30,000."""
    chance = random.Random(1)
    words = [f"w{chance.randrange(1 << 16):x}" for _ in range(30_000)]
    line = sum(map(len, words)) / len(words) * 40 + 40
    return "\n".join(" ".join(chance.choices(words, k=40)) for _ in range(int(megabytes * 1e6 / line))).encode()


def rate(source: Source) -> str:
    """Megabytes of text per second of processor time, the best of three."""
    best = 0.0
    for _ in range(3):
        begin = time.process_time()
        size = sum(map(len, source.blocks()))
        best = max(best, size / 1e6 / (time.process_time() - begin))
    return f"{best:,.0f} MB/s"


def over_s3(text: bytes) -> str:
    """The rate of a text in a local S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port = server.get_host_and_port()
    keys = dict(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1")
    os.environ |= keys | dict(AWS_ENDPOINT_URL=f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")
    client.put_object(Bucket="texts", Key="a.txt", Body=text)
    found = rate(Source("s3://texts/a.txt"))
    server.stop()
    return found


def main(megabytes: float = 60) -> None:
    """Prints the rates."""
    text = random_text(megabytes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix, compress in COMPRESS.items():
            (folder / f"a.{suffix}").write_bytes(compress(text))
            print(f"{suffix:4}", rate(Source(str(folder / f"a.{suffix}"))))
        path = folder / "a.txt"
        os.utime(path, (0, 0))
        for start in ("first", "second"):
            begin = time.perf_counter()
            Source(str(path), cache_dir=folder).fingerprint()
            print(f"fingerprint at the {start} start: {1e3 * (time.perf_counter() - begin):,.1f} ms")
    print("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MB, with the text itself")
    print("S3  ", over_s3(text))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
