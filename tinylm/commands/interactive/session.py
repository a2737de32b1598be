"""The state of a prompt loop: prompts and their answers, and the commands that change them.

The history is a tuple of exchanges. Every command makes a new history and keeps the old one, so that `undo` restores
it exactly. Nothing else is remembered between two answers: an answer follows from the exchanges before it, the settings
and its seed. The seed of a prompt is that of the settings, or a random one; answer i to the same prompt, from 0, is
drawn with the seed + i, like sample i of `tinylm generate --num-samples`.

Left out: the cache of keys and values is not kept from turn to turn; the conversation is read again.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tinylm.commands import output
from tinylm.commands.interactive.prompts import Fit, describe, fit_of, known_beginning
from tinylm.commands.interactive.screen import Screen
from tinylm.console import interruptible, plural, use_color
from tinylm.errors import ConfigError
from tinylm.generation.generate import Generator
from tinylm.generation.text import Completion, Reader, Text

if TYPE_CHECKING:
    from tinylm.data.template import ChatTemplate, Template

REPLACEMENT = "\ufffd"  # stands for bytes that are not UTF-8 text


@dataclass(frozen=True)
class Model:
    """A model to talk to.

    Attributes:
        generator: continues prompts
        info: recorded values of its run
        template: the format of the conversations that it was trained on; None: prompts are independent
        threads: number of CPU threads, if it was chosen
    """

    generator: Generator
    info: dict[str, Any] = field(default_factory=dict)
    template: "Template | ChatTemplate | None" = None
    threads: int | None = None


@dataclass(frozen=True)
class Exchange:
    """A prompt and its answer.

    Attributes:
        prompt: as typed
        text: its ids, and those of the answer
        answer: the text of the answer, up to a stop string
        seed: of the prompt
        draw: number of earlier answers drawn to this prompt
        fit: the fit of the prompt to the training text, if it is known
        dropped: earlier exchanges of the conversation that did not fit the context
    """

    prompt: str
    text: Text
    answer: str
    seed: int
    draw: int
    fit: Fit | None
    dropped: int

    @property
    def turns(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The two turns, each a role and its text."""
        return ("user", self.prompt), ("assistant", self.answer)

    @property
    def completion(self) -> Completion:
        """Prompt and answer in the form of `Generator.complete`."""
        return self.text.completion(self.prompt, self.answer)


class Session:
    """The state of a prompt loop.

    Args:
        model: the model to begin with
        settings: options of `Generator.generate` to begin with
        screen: shows the answers
        open_model: loads the model at a path; None: it cannot be changed

    Attributes:
        model: the model in use
        settings: the settings in use
        exchanges: the history, without exchanges that were undone
        show_probs: whether answers are shown with the probability of each token
    """

    def __init__(
        self,
        model: Model,
        settings: dict[str, Any],
        screen: Screen,
        open_model: Callable[[str], Model] | None = None,
    ) -> None:
        self.model, self.settings, self._screen, self._open = model, dict(settings), screen, open_model
        self.exchanges: tuple[Exchange, ...] = ()
        self.show_probs = False
        self._earlier: list[tuple[Exchange, ...]] = []

    @property
    def generator(self) -> Generator:
        """The generator in use."""
        return self.model.generator

    # --- what a person can do

    def ask(self, prompt: str) -> None:
        """Answers a prompt."""
        self._answer(self.exchanges, prompt, self._seed(), 0)

    def again(self) -> None:
        """Draws another answer to the last prompt in place of the last one; ConfigError if there is none."""
        *before, last = self._said("/again draws another answer")
        seed = last.seed if self.settings.get("seed") is None else self._seed()
        if self.settings.get("temperature") == 0:
            self._screen.say("temperature 0 always gives the same answer; /set temperature 0.8 draws others")
        self._answer(tuple(before), last.prompt, seed, last.draw + 1 if seed == last.seed else 0)

    def more(self) -> None:
        """Continues the last answer by up to max_new_tokens; ConfigError if there is none, or it has ended by itself.

        With unchanged settings both parts are the answer that a larger max_new_tokens gives.
        """
        *before, last = self._said("/more continues an answer")
        if last.text.finished == "end":
            raise ConfigError("the answer has ended by itself; /again draws another")
        most = self.settings.get("max_new_tokens", 500) + len(last.text.ids)
        config, _ = self.generator.check_options(self.settings | {"max_new_tokens": most})
        text = Text(last.text.prompt, last.text.seed)
        least = max(
            config.min_new_tokens, len(last.text.ids) + 1
        )  # a stop string in the earlier part does not end the new one
        reader = Reader(text, self.generator.tokenizer.piece_decoder(), config.stop, least)
        said = ""
        for token, log_prob in zip(last.text.ids, last.text.log_probs, strict=True):
            text.ids.append(token)
            text.log_probs.append(log_prob)
            said += reader.read()
        begun = said[len(last.answer) :] if said.startswith(last.answer) else ""  # such as a stop string

        def pieces() -> Iterator[str]:
            for _ in self.generator.decode([text], config, log_probs=True):
                yield reader.read()
            yield reader.rest()

        answer = said + self._show(text, pieces(), begun)
        self._keep((*before, Exchange(last.prompt, text, answer, last.seed, last.draw, last.fit, last.dropped)))

    def undo(self) -> None:
        """Takes back the last change: a prompt, /again, /more or /reset; ConfigError if there is none."""
        if not self._earlier:
            raise ConfigError("/undo takes back a prompt, and there is none")
        self.exchanges = self._earlier.pop()
        last = repr(self.exchanges[-1].prompt) if self.exchanges else "none"
        self._screen.say(f"taken back; the last prompt is now: {last}")

    def reset(self) -> None:
        """Forgets everything that has been said; `undo` restores it."""
        if self.exchanges:
            self._keep(())
        self._screen.say("forgotten; /undo restores it")

    def open_model(self, path: str) -> None:
        """Takes another model, with the same settings, and forgets what has been said.

        Raises:
            ConfigError: if the settings do not fit the model.
            MissingInputError: if there is no model; the one in use stays.
        """
        if self._open is None:
            raise ConfigError("/model: this loop has one model only")
        model = self._open(path)
        model.generator.check_options(self.settings)
        self.model, self.exchanges, self._earlier = model, (), []
        self._screen.say("the model is ready; the conversation begins anew")

    def set(self, name: str, value: Any) -> None:
        """Changes a setting; ConfigError for an invalid value."""
        changed = self.settings | {name: value}
        self.generator.check_options(changed)
        self.settings = changed

    # --- answers

    def _said(self, purpose: str) -> tuple[Exchange, ...]:
        if not self.exchanges:
            raise ConfigError(f"{purpose}, and there is none yet; type a prompt first")
        return self.exchanges

    def _seed(self) -> int:
        seed = self.settings.get("seed")
        return secrets.randbelow(1 << 32) if seed is None else seed

    def _keep(self, exchanges: tuple[Exchange, ...]) -> None:
        self._earlier.append(self.exchanges)
        self.exchanges = exchanges

    def _answer(self, before: tuple[Exchange, ...], prompt: str, seed: int, draw: int) -> None:
        """Draws the answer to a prompt after earlier exchanges, shows it and keeps it."""
        dropped = self._remember(before, prompt)
        drawn = self.settings | {"seed": (seed + draw) % 2**64}
        text, pieces = self.generator.begin(prompt, log_probs=True, **drawn)
        fit = fit_of(self.generator, text.prompt, self.model.info)
        if fit is not None and fit.unlike and draw == 0:
            self._screen.say(describe(fit, known_beginning(self.generator, self.model.info)))
        answer = self._show(text, pieces)
        if text.ids or text.finished:
            self._keep((*before, Exchange(prompt, text, answer, seed, draw, fit, dropped)))

    def _show(self, text: Text, pieces: Iterator[str], begun: str = "") -> str:
        """Shows an answer as it is generated, or as a whole with probabilities; Ctrl-C at a terminal ends it.

        `begun` is shown before the pieces; the result are these alone.
        """
        parts, first = [], len(text.ids)
        write = (lambda piece: None) if self.show_probs else self._screen.write
        with self._screen.answering():
            write(begun)
            try:
                with interruptible():
                    for piece in pieces:
                        parts.append(piece)
                        write(piece)
            except KeyboardInterrupt:
                if not self._screen.interactive:
                    raise
            answer = "".join(parts)
            if self.show_probs:
                new = Completion("", answer, text.ids[first:], text.log_probs[first:], text.finished)
                self._screen.put(output.show_probabilities(new, self.generator.tokenizer, use_color()))
        self._name_invalid_bytes(text.ids[first:], answer)
        return answer

    def _name_invalid_bytes(self, ids: Sequence[int], answer: str) -> None:
        """Prints how many bytes of an answer are not UTF-8 text; the model's own � does not count."""
        written = self.generator.tokenizer.decode(ids, "ignore", continues=True).count(REPLACEMENT)
        if (count := answer.count(REPLACEMENT) - written) > 0:
            self._screen.say(f"{REPLACEMENT} above stands for bytes that are not UTF-8 text, {plural(count, 'time')}")

    # --- memory

    def _remember(self, before: tuple[Exchange, ...], prompt: str) -> int:
        """Lets the generator read a prompt after the exchanges before it; returns how many of these do not fit.

        The newest exchanges are read, as many as leave a quarter of the context free for the answer, or max_new_tokens,
        if that is less.
        """
        context, most = self.generator.model.config.max_seq_len, self.settings.get("max_new_tokens", 500)
        dropped = 0
        if self.model.template is not None:
            ids, dropped = self._conversation((), prompt), len(before)
            while dropped:
                longer = self._conversation(before[dropped - 1 :], prompt)
                if len(longer) > context - min(most, context // 4):
                    break
                ids, dropped = longer, dropped - 1
            self.generator.encode_prompt = lambda _: ids
            if dropped > (before[-1].dropped if before else 0):
                turns = plural(2 * dropped, "turn")
                self._screen.say(
                    f"the conversation exceeds the context of {context} tokens: its first {turns} are not read"
                )
        count = len(self.generator.whole_prompt(prompt))
        if count > context and self.settings.get("truncate") is None:
            remedy = "/set truncate left reads only its end"
            raise ConfigError(f"the prompt has {count} tokens, the context holds {context}; {remedy}")
        return dropped

    def _without_special(self, answer: str) -> str:
        """An answer without the names of special tokens, which only an untrained model writes in its turn."""
        for name in self.generator.tokenizer.special_tokens:
            answer = answer.replace(name, "")
        return answer

    def _conversation(self, before: Sequence[Exchange], prompt: str) -> list[int]:
        """The ids of a conversation that ends with a user's message, to be answered."""
        from tinylm.data.pairs import Turn
        from tinylm.data.template import prompt_ids

        assert self.model.template is not None
        said = [replace(each, answer=self._without_special(each.answer)) for each in before]
        turns = [Turn(role, text) for each in said for role, text in each.turns]
        turns += [Turn("user", prompt), Turn("assistant", "")]
        return prompt_ids(self.generator.tokenizer, turns, self.model.template)
