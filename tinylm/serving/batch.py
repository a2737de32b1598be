"""Batch: texts that grow together, each joining and leaving at any step (continuous batching, Yu et al. 2022).

The memory of all rows is allocated once. Growing texts occupy the first rows, so the cost of a step depends on their
number only; when a text leaves, the last text moves into its row. A text joins once its prompt has been read, up to
`PART` tokens between two steps: a longer prompt is read in parts, several short ones at once. A text that fills the
context leaves its row, and its newest half is read again like a new prompt.

Each text has its own options, seed and stop strings; those with equal options are drawn together.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinylm.errors import ConfigError, NumericError, TinyLMError, first_line
from tinylm.generation.generate import Generator
from tinylm.generation.options import SamplingConfig
from tinylm.generation.sampling import CORRUPT, NO_TOKEN, choose
from tinylm.generation.text import Text, announce_sliding

PART = 256  # most tokens of prompts read between two steps


class Piece(NamedTuple):
    """One token of a text, as it is made.

    Attributes:
        text: the characters that it adds; none for half a character, or while a stop string may have begun. The last
            piece adds the characters held back
        token: its id; None at the end-of-text token, which is not part of the text
        log_prob: its log probability, in nats, before temperature and filters
        alternatives: the most likely tokens with their log probabilities, most likely first
        finished: empty while the text grows, then why it ended: "stop", "end" or "length", as in `Text`
    """

    text: str
    token: int | None
    log_prob: float
    alternatives: tuple[tuple[int, float], ...]
    finished: str


@dataclass(eq=False)
class Request:
    """A text to be made.

    Attributes:
        prompt: token ids, at least one, at most as many as the context holds
        config: how tokens are chosen, and where the text ends
        alternatives: number of most likely tokens to report with each piece
        client: the client, for the queue that serves clients in turn
        begun: tokens that the text already has; it continues as if they had been generated
    """

    prompt: list[int]
    config: SamplingConfig
    alternatives: int = 0
    client: str = ""
    begun: list[int] = field(default_factory=list)


def _memory(request: Request, context: int) -> int:
    """Number of tokens that a text remembers before its newest one; a text that filled the context has slid."""
    length = len(request.prompt) - 1
    for _ in request.begun:
        length += 1
        if length == context:
            length = max(context // 2, 1) - 1
    return length


class Row:
    """A text that grows.

    Attributes:
        request: its request
        text: the prompt and the tokens so far
        left: whether its client has left
    """

    def __init__(self, generator: Generator, request: Request) -> None:
        config = request.config
        self.request, self.config, self.left = request, config, False
        self.text = Text(request.prompt, config.seed)
        self.reader = generator.reader(self.text, config)
        self.kind = repr(replace(config, max_new_tokens=max(config.min_new_tokens, 1), stop=(), seed=None))
        for token in request.begun:
            self.text.ids.append(token)
            self.reader.read()
        ids = [*request.prompt, *request.begun]
        self.unread = ids[len(ids) - _memory(request, generator.model.config.max_seq_len) - 1 : -1]

    @property
    def last(self) -> int:
        """The newest token, which the next step reads."""
        return (self.text.ids or self.text.prompt)[-1]


class Batch:
    """The texts that grow, and those whose prompts are being read.

    Args:
        generator: of the model
        size: most texts at once; memory for so many is allocated

    Attributes:
        growing: the texts of the first rows, one in each
        unread: texts whose tokens must be read before they grow
        prompt_tokens: number of tokens of prompts read so far, including those read again

    Raises:
        ConfigError: for a decoder that cannot change its number of rows, or if there is not enough memory.
    """

    def __init__(self, generator: Generator, size: int) -> None:
        generator.refresh_decoder()
        self.generator, self.size = generator, size
        if self.decoder.fixed_rows:
            name = type(self.decoder).__name__
            raise ConfigError(f"{name} has a fixed number of rows; texts that join and leave need another decoder")
        try:
            self.memory: Any = self.decoder.make_cache(size)
        except (RuntimeError, MemoryError) as error:  # raised by PyTorch's allocators
            problem = f"a cache of {size} contexts does not fit ({first_line(error)})"
            raise ConfigError(f"rows: {problem}; lower rows") from error
        self.cache = self.memory.rows(0, 0)
        self.growing: list[Row] = []
        self.unread: deque[Row] = deque()
        self._begun, self._read = False, 0  # whether the first unread text is being read in parts, and how far
        self.prompt_tokens, self._announced = 0, False

    @property
    def free(self) -> int:
        """Number of texts that may join."""
        return self.size - len(self.growing) - len(self.unread)

    def join(self, row: Row) -> None:
        """Adds a text; `free` must not be 0."""
        self.unread.append(row)

    def clear(self) -> list[Row]:
        """Removes and returns all texts."""
        rows = [*self.growing, *self.unread]
        self.growing, self._begun = [], False
        self.unread.clear()
        self.cache = self.memory.rows(0, 0)
        return rows

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Piece | TinyLMError]]:
        """Reads a part of the prompts, and extends each growing text by a token; texts that end leave."""
        self._drop_left()
        self._read_part()
        if not self.growing:
            return []
        last = torch.tensor([row.last for row in self.growing], device=self._device)
        logits = self.decoder.step(last, self.cache)[:, : self.generator.tokenizer.vocab_size]  # (B, V)
        made = self._extend(logits)
        self._remove(i for i, row in enumerate(self.growing) if row.text.finished or isinstance(made[i][1], Exception))
        self._slide()
        return made

    @property
    def decoder(self) -> Any:
        """Reads the tokens."""
        return self.generator.decoder

    @property
    def _device(self) -> torch.device:
        return next(self.generator.model.parameters()).device

    # --- rows of the cache

    def _drop_left(self) -> None:
        """Removes the texts whose clients have left."""
        self._remove(i for i, row in enumerate(self.growing) if row.left)
        if self.unread and self.unread[0].left:
            self._begun = False
        self.unread = deque(row for row in self.unread if not row.left)

    def _remove(self, indices: Iterable[int]) -> None:
        """Removes growing texts: the last ones move into their rows."""
        removed = sorted(indices, reverse=True)
        if not removed:
            return
        self.memory.adopt(self.cache, 0)
        for index in removed:
            last = self.growing.pop()
            if index < len(self.growing):
                self.memory.move(len(self.growing), index)
                self.growing[index] = last
        self.cache = self.memory.rows(0, len(self.growing))

    def _append(self, rows: list[Row]) -> None:
        """Adds texts whose tokens lie in the rows after the growing ones."""
        self.growing += rows
        self.cache = self.memory.rows(0, len(self.growing))

    def _slide(self) -> None:
        """Marks texts that fill the context to be read again, from their newest half on."""
        context = self.generator.model.config.max_seq_len
        full = [i for i, length in enumerate(self.cache.lengths) if length == context]
        for row in [self.growing[i] for i in full]:
            row.unread = [*row.text.prompt, *row.text.ids][-max(context // 2, 1) : -1]
            self.unread.appendleft(row) if not self._begun else self.unread.insert(1, row)
        if full and not self._announced:
            announce_sliding(context)
            self._announced = True
        self._remove(full)

    # --- prompts

    def _read_part(self) -> None:
        """Reads up to `PART` tokens of prompts: several short ones at once, or a part of a long one."""
        if not self.unread:
            return
        if self._begun or len(self.unread[0].unread) > PART:
            self._read_long()
            return
        rows, width = [], 0
        while self.unread:
            width = max(width, len(self.unread[0].unread))
            if rows and (len(rows) + 1) * width > PART:
                break
            rows.append(self.unread.popleft())
        first = len(self.growing)
        self.memory.adopt(self.cache, 0)
        self.memory.erase(first, len(rows))
        part = self.memory.rows(first, len(rows))
        self.decoder.prefill([row.unread for row in rows], part)
        self.memory.adopt(part, first)
        self.prompt_tokens += sum(len(row.unread) for row in rows)
        self._append(rows)

    def _read_long(self) -> None:
        """Reads the next part of a long prompt, in the last row of the memory, which is free."""
        ids, place = self.unread[0].unread, self.size - 1
        if not self._begun:
            self.memory.erase(place, 1)
            part = self.memory.rows(place)
            self._read, self._begun = self.decoder.start(ids, part), True
        else:
            part = self.memory.rows(place)
        new = ids[self._read : self._read + PART]
        if new:
            self.decoder.extend(new, part)
        self._read += len(new)
        self.prompt_tokens += len(new)
        self.memory.adopt(part, place)
        if self._read == len(ids):
            self._begun = False
            self.memory.adopt(self.cache, 0)
            if place != len(self.growing):
                self.memory.move(place, len(self.growing))
            self._append([self.unread.popleft()])

    # --- tokens

    def _extend(self, logits: Tensor) -> list[tuple[Row, Piece | TinyLMError]]:
        """Chooses the next token of each growing text, and spells it."""
        tokens, errors = self._choose(logits)
        log_probs = logits.log_softmax(dim=-1)
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        found = log_probs.gather(1, chosen)[:, 0].tolist()
        most = max(row.request.alternatives for row in self.growing)
        values, ids = (part.tolist() for part in log_probs.topk(most, dim=-1)) if most else ([], [])
        made: list[tuple[Row, Piece | TinyLMError]] = []
        for i, row in enumerate(self.growing):
            if i in errors:
                made.append((row, errors[i]))
                continue
            count = row.request.alternatives
            others = tuple(zip(ids[i][:count], values[i][:count], strict=True)) if count else ()
            made.append((row, self._spell(row, tokens[i], found[i], others)))
        return made

    def _choose(self, logits: Tensor) -> tuple[list[int], dict[int, TinyLMError]]:
        """The next token of each text, and the errors of rows that have none."""
        errors: dict[int, TinyLMError] = {}
        kinds: dict[str, list[int]] = {}
        for i, finite in enumerate(logits.amax(dim=-1).isfinite().tolist()):
            if finite:
                kinds.setdefault(self.growing[i].kind, []).append(i)
            else:
                errors[i] = NumericError(CORRUPT)
        tokens = [0] * len(self.growing)
        for indices in kinds.values():
            rows = [self.growing[i] for i in indices]
            config = rows[0].config
            own = logits if len(indices) == len(logits) else logits[indices]
            scores = self.generator.scores(
                own, [row.text.prompt for row in rows], [row.text.ids for row in rows], config
            )
            possible = [True] * len(rows) if scores is own else scores.amax(dim=-1).isfinite().tolist()
            if not all(possible):
                errors |= {i: ConfigError(NO_TOKEN) for i, good in zip(indices, possible, strict=True) if not good}
                kept = [k for k, good in enumerate(possible) if good]
                scores, rows, indices = scores[kept], [rows[k] for k in kept], [indices[k] for k in kept]
            if rows:
                drawn = choose(scores, config, [row.text.random for row in rows], [len(row.text.ids) for row in rows])
                for i, token in zip(indices, drawn.tolist(), strict=True):
                    tokens[i] = token
        return tokens, errors

    def _spell(self, row: Row, token: int, log_prob: float, alternatives: tuple[tuple[int, float], ...]) -> Piece:
        """Appends a token to its text."""
        text = row.text
        self.generator.append(text, token, [log_prob], row.config)
        ended = text.finished == "end"
        passed = row.reader.read()
        if text.finished:
            passed += row.reader.rest()
        return Piece(passed, None if ended else token, log_prob, alternatives, text.finished)
