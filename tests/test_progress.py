"""Progress: at a real terminal a bar with total, rate and time left; elsewhere lines; and readers report every byte."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import tinylm.progress
from tinylm.data import open_corpus
from tinylm.evaluation import log_probs
from tinylm.generation import Generator
from tinylm.model import ModelConfig, TransformerLM
from tinylm.progress import ProgressBar, show_state
from tinylm.tokenizer import CharTokenizer

matching = importlib.import_module("tinylm.evaluation.exact_match")  # a function has its name
needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
ROOT = Path(tinylm.progress.__file__).parents[1]
HAND = [  # done, total, unit, rate; what a reader expects
    ((120e6, 250e6, "B", 32.5e6), "120 of 250 MB, 32.5 MB/s, 00:04 left"),  # 130 / 32.5 s
    ((3.25e9, 10e9, "B", 50e6), "3.2 of 10.0 GB, 50.0 MB/s, 02:15 left"),  # 6750 / 50 s
    ((900, 1791, "merges", 60.0), "900 of 1,791 merges, 60 merges/s, 00:14 left"),  # 891 / 60 s
    ((1, 4000, "merges", 0.5), "1 of 4,000 merges, 0.5 merges/s, 2:13:18 left"),  # 7998 s
    ((5e6, None, "B", 1e6), "5 MB, 1.0 MB/s"),
]


@pytest.mark.parametrize(("state", "shown"), HAND)
def test_a_state_is_shown_as_calculated_by_hand(state, shown):
    assert show_state(*state) == shown


def at_terminal(code: str, folder: Path, columns: int = 80) -> list[str]:
    """The lines that a program shows at a pseudo-terminal, redrawn ones included."""
    import fcntl
    import struct
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TINYLM_CACHE": str(folder / "cache")}
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(master)
    assert process.wait(timeout=60) == 0, shown.decode()
    return [line for line in re.split(r"[\r\n]+", shown.decode()) if line]


@needs_terminal
def test_a_bar_appears_after_a_delay_with_total_rate_and_time_left_and_is_erased(tmp_path):
    code = """
        import time, tinylm.progress as progress
        assert progress.DELAY == 2.0
        progress.DELAY = 0.5
        with progress.ProgressBar("encoding my.txt", 60_000_000) as bar:
            for _ in range(12):
                bar.update(5_000_000)
                time.sleep(0.1)
        print("done")
    """
    *bars, blank, last = at_terminal(code, tmp_path)
    found = [re.fullmatch(r"encoding my\.txt: +(\d+)%\|.*\| (\d+) of 60 MB, (\d+)\.\d MB/s, 00:0\d left *", bar)
             for bar in bars]  # fmt: skip
    assert found and all(found) and all(len(bar) <= 80 for bar in bars)
    percent, megabytes, rate = (int(text) for text in found[0].groups())
    assert megabytes >= 25 and percent == round(100 * megabytes / 60)  # nothing in the first half second
    assert 30 <= rate <= 50  # 5 MB every 0.1 s and a little more
    assert not blank.strip() and last == "done"


@needs_terminal
def test_work_that_ends_before_the_delay_shows_nothing(tmp_path):
    code = "from tinylm.progress import ProgressBar\nwith ProgressBar('x', 10) as bar:\n  bar.update(5); bar.update(5)"
    assert at_terminal(code, tmp_path) == []


@needs_terminal
def test_learning_a_tokenizer_shows_bytes_of_total_and_then_merges_of_total(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"word{i * i}" for i in range(3000)))
    size = (tmp_path / "a.txt").stat().st_size
    train = "'tokenizer', 'train', 'a.txt', '--vocab-size', '600', '--out'"
    for words, counted, learning, total in (
        (f"[{train}, 't.json']", size, "merging", "343 merges"),  # without 256 bytes and a special token
        ("['prepare', 'inspect', 'a.txt', '--tokenizer', 'bpe:600']", size * 0.9, "merging", "344 merges"),  # a part
        (f"[{train}, 'u.json', '--kind', 'unigram']", size, "pruning", "[\\d,]+ pieces"),
    ):
        code = f"""
            import tinylm.progress as progress
            update = progress.ProgressBar.update
            def update_and_show(self, amount):
                update(self, amount)
                self._shown.refresh()
            progress.ProgressBar.update = update_and_show
            from tinylm.commands import main
            raise SystemExit(main({words}))
        """
        shown = "\n".join(at_terminal(code, tmp_path))
        assert re.search(rf"counting words.*\| {counted / 1e3:.0f} of {counted / 1e3:.0f} kB, [\d.,]+ MB/s", shown)
        number, unit = total.split()
        found = re.findall(rf"{learning}: +\d+%\|.*\| ([\d,]+) of ({number}) {unit}, [\d.,]+ {unit}/s", shown)
        done = [int(n.replace(",", "")) for n, _ in found]
        assert found[-1][0] == found[-1][1] and done == sorted(done)
        assert shown.rindex("counting words") < shown.index(learning)


def test_without_a_terminal_there_is_a_line_every_half_minute(monkeypatch, capfd):
    clock = [0.0]
    monkeypatch.setattr(tinylm.progress.time, "monotonic", lambda: clock[0])
    with ProgressBar("encoding big.txt", 2_500_000_000) as bar:
        for _ in range(25):  # 10 MB/s
            bar.update(100_000_000)
            clock[0] += 10
    assert capfd.readouterr().err.splitlines()[:2] == [
        "tinylm: encoding big.txt: 16%, 0.4 of 2.5 GB, 10.0 MB/s, 03:30 left",
        "tinylm: encoding big.txt: 28%, 0.7 of 2.5 GB, 10.0 MB/s, 03:00 left",
    ]
    with ProgressBar("encoding small.txt", 250) as bar:
        bar.update(250)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("part", [None, "train", "val"])
def test_readers_report_every_byte_of_their_files_once(part, tmp_path):
    text = "".join(f"line {i} é\n" for i in range(200_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text("last\n")
    (tmp_path / "parts").mkdir()
    for name in ("train.txt", "val.txt"):
        (tmp_path / "parts" / name).write_text(f"{name}<|endoftext|>" * 10)
    total = sum((tmp_path / name).stat().st_size for name in ("a.txt", "b.txt"))
    share = {None: 1, "train": 0.9, "val": 1}[part]  # read up to its end
    expected = {
        str(tmp_path / "*.txt"): share * total,
        f"lines:{tmp_path / '*.txt'}": total,
        str(tmp_path / "parts"): sum(
            10 * len(f"{name}.txt<|endoftext|>") for name in ([part] if part else ["train", "val"])
        ),
        "stories:50": 50,
    }
    for source, amount in expected.items():
        corpus = open_corpus(source, split=(0.9, 0.1), cache_dir=tmp_path)
        with corpus.reading("reading", part) as bar:
            for document in corpus.documents(part) if part else (text for _, text in corpus.items()):
                for _ in document:
                    pass
        assert bar.done == pytest.approx(amount, rel=0.01), source
        assert corpus.size(part) == pytest.approx(amount, rel=0.01), source


def test_scoring_counts_windows_and_answers(monkeypatch):
    bars = []

    class Recorded(ProgressBar):
        def __init__(self, description: str, total: int | None = None, unit: str = "B") -> None:
            super().__init__(description, total, unit)
            bars.append((self, total))

    for module in (log_probs, matching):
        monkeypatch.setattr(module, "ProgressBar", Recorded)
    tokenizer = CharTokenizer("ab", ["<|endoftext|>"])
    model = TransformerLM(ModelConfig(vocab_size=3, d_model=8, num_layers=1, num_heads=2, max_seq_len=8)).eval()
    log_probs.token_log_probs(model, [np.zeros(20, int), np.zeros(4, int)], stride=4, batch_size=2)
    matching.exact_match(Generator(model, tokenizer), [[0], [1], [0]], ["a", "b", "a"], max_new_tokens=2, batch_size=2)
    assert [(bar.done, total) for bar, total in bars] == [(5, 5), (3, 3)]  # windows from 0, 4, 8 and 11, and from 0


def test_a_file_that_grows_stays_at_its_total():
    with ProgressBar("reading", 250) as bar:
        for _ in range(3):
            bar.update(100)
    assert bar.done == 250
