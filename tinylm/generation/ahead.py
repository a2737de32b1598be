"""The loop of `Generator.decode` for a `GraphDecoder`: the host launches steps ahead of the tokens that it has read.

A step leaves its tokens on the device, where the next step finds them. The host can therefore launch `AHEAD` steps
before it reads the tokens of the first, and the device never waits for the host. The host learns late that a text has
ended, and drops the tokens that follow. The texts are those of the other loop, by the same rules: when a text ends, the
next takes its row, and a text that fills the context slides.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError, NumericError
from tinylm.generation.fast.graph import StaticRows
from tinylm.generation.fast.sampler import NOT_FINITE, OK, Sampler
from tinylm.generation.options import SamplingConfig
from tinylm.generation.sampling import CORRUPT, NO_TOKEN
from tinylm.generation.text import Text, announce_sliding

AHEAD = 3  # most steps that are launched and not yet read


def decode_ahead(
    generator: Any, rows: list[Text], waiting: Iterator[Text], config: SamplingConfig, log_probs: bool
) -> Iterator[Text]:
    """Extends the texts of `rows`, then the waiting ones, like `Generator.decode`, with a `GraphDecoder`."""
    with generator.decoder.static_rows(len(rows)) as static:
        weight, stops = generator.model.embedding.weight, generator.tokenizer.marks.stops
        vocab_size = generator.tokenizer.vocab_size
        static.sample_by(Sampler(config, vocab_size, sorted(stops), log_probs, len(rows), weight))
        yield from _Loop(generator, static, rows, config, log_probs).run(waiting)


class _Loop:
    """The rows of a batch and the steps in flight.

    Attributes:
        rows: the text of each row
        launched: number of tokens of each row's text that have been launched
        flight: for each step that has been launched and not read: its result, and the texts that it extends, by row
    """

    def __init__(
        self, generator: Any, static: StaticRows, rows: list[Text], config: SamplingConfig, log_probs: bool
    ) -> None:
        self.generator, self.static, self.rows, self.config, self.log_probs = generator, static, rows, config, log_probs
        self.cache, self.stats = static.cache, generator.stats
        self.launched = [len(text.ids) for text in rows]
        self.flight: deque[tuple[Callable[[], list], dict[int, Text]]] = deque()
        self.announced = False

    def run(self, waiting: Iterator[Text]) -> Iterator[Text]:
        """Extends the texts of the rows, and then the waiting ones."""
        self.stats.cache_bytes = self.cache.num_bytes
        context = self.cache.max_len
        self.generator.prefill(self.cache, [text.window(context)[:-1] for text in self.rows])
        for row, text in enumerate(self.rows):
            self.static.begin(row, text)
        while True:
            check_interrupt()
            self._replace(waiting)
            growing = [row for row, text in enumerate(self.rows) if not text.finished]
            if not growing:
                return
            wanting = [row for row in growing if self.launched[row] < self.config.max_new_tokens]
            full = [row for row in wanting if self.cache.lengths[row] == self.cache.max_len]
            if wanting and not full and len(self.flight) < AHEAD:
                self._launch(wanting)
            elif self.flight:
                yield from self._read()
            else:
                self._slide(full)

    def _replace(self, waiting: Iterator[Text]) -> None:
        """Gives the rows of texts that have ended to waiting ones."""
        for row, text in enumerate(self.rows):
            following = next(waiting, None) if text.finished else None
            if following is not None:
                self.rows[row], self.launched[row] = following, len(following.ids)
                self.generator.prefill(self.cache, [following.window(self.cache.max_len)[:-1]], row)
                self.static.begin(row, following)

    def _launch(self, wanting: list[int]) -> None:
        started = time.perf_counter()
        self.flight.append((self.static.launch(wanting), {row: self.rows[row] for row in wanting}))
        for row in wanting:
            self.launched[row] += 1
        self.stats.decode_seconds += time.perf_counter() - started

    def _read(self) -> Iterator[Text]:
        """Reads the tokens of the oldest step in flight, which may wait for it."""
        started = time.perf_counter()
        wait, texts = self.flight.popleft()
        result = wait()
        grown = {row: text for row, text in texts.items() if not text.finished}
        for row, text in grown.items():
            token, log_prob, fault = result[row]
            if fault != OK:
                raise NumericError(CORRUPT) if fault == NOT_FINITE else ConfigError(NO_TOKEN)
            self.generator.append(text, int(token), [log_prob] if self.log_probs else [], self.config)
        self.stats.decode_seconds += time.perf_counter() - started
        self.stats.new_tokens += len(grown)
        yield from grown.values()

    def _slide(self, full: list[int]) -> None:
        """Reads the newest half of full rows again as a new context; no step is in flight."""
        context = self.cache.max_len
        if not self.announced:
            announce_sliding(context)
        self.announced = True
        for row in full:
            text = self.rows[row]
            self.generator.prefill(self.cache, [text.window(context)[:-1]], row)
            self.static.begin(row, text)
