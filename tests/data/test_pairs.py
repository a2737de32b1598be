"""Reading pairs: three formats give equal records, and errors name the line or record."""

import csv
import gzip
import json
import lzma

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylm.data import Turn, read_pairs
from tinylm.errors import DataError, MissingInputError

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
responses = texts.filter(str.strip)


def conversation(prompt: str, response: str) -> tuple[Turn, ...]:
    return (Turn("user", prompt), Turn("assistant", response))


# --- formats


@few
@given(written=st.lists(st.tuples(texts, responses), min_size=1, max_size=5))
def test_all_formats_give_the_records_written(tmp_path, written):
    records = [{"prompt": prompt, "response": response} for prompt, response in written]
    chats = [[dict(role="user", content=p), dict(role="assistant", content=r)] for p, r in written]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    for name, rows in (("a.jsonl", records), ("b.jsonl", [dict(messages=chat) for chat in chats])):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]  # U+2028 does not end a line
        (tmp_path / name).write_text("\n\n".join(lines) + "\n", encoding="utf-8", newline="")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(records)
    for name in ("a.json", "a.jsonl", "b.jsonl", "a.csv"):
        assert read_pairs(tmp_path / name) == [conversation(*pair) for pair in written], name


@few
@given(written=st.lists(st.tuples(texts, responses), min_size=1, max_size=5))
def test_compressed_and_columnar_files_give_the_records_written(tmp_path, written):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install tinylm[data]")
    from pyarrow import feather, parquet

    records = [{"prompt": prompt, "response": response, "id": 7} for prompt, response in written]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    chats = [{"messages": [dict(role="user", content=p), dict(role="assistant", content=r)]} for p, r in written]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(json.dumps(records).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "chats.parquet")
    feather.write_feather(pyarrow.Table.from_pylist(records), tmp_path / "a.arrow")
    for name in ("a.jsonl.gz", "a.json.xz", "a.parquet", "chats.parquet", "a.arrow"):
        assert read_pairs(tmp_path / name) == [conversation(*pair) for pair in written], name


def test_errors_in_columns_name_the_record_and_damage_the_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install tinylm[data]")
    from pyarrow import parquet

    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"q\.parquet: record 1: has no prompt and no response; it has "):
        read_pairs(tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"q\.parquet: record 2: answer must be a string, got null"):
        read_pairs(tmp_path / "q.parquet", ("question", "answer"))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "q.parquet").read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"cut\.parquet: is not a valid Parquet or Arrow file, or is truncated or damaged"
    ):
        read_pairs(tmp_path / "cut.parquet")


def test_other_fields_and_a_byte_order_mark_are_ignored(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,response,prompt\r\n7,"4, or so","2+2\nis "\r\n')
    assert read_pairs(tmp_path / "a.csv") == [conversation("2+2\nis ", "4, or so")]
    (tmp_path / "a.jsonl").write_text('{"prompt": "", "response": " x", "id": 1, "meta": {}}')
    assert read_pairs(tmp_path / "a.jsonl") == [conversation("", " x")]


def test_conversations_have_many_turns_and_an_optional_system_turn(tmp_path):
    turns = (("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "bye!"))
    messages = [dict(role=role, content=content, name="x") for role, content in turns]
    (tmp_path / "a.json").write_text(json.dumps([dict(messages=messages)]))
    assert read_pairs(tmp_path / "a.json") == [tuple(Turn(*turn) for turn in turns)]


READ = {  # name of the file -> content, the turns of its first record
    "a.JSONL": ('{"prompt": "2+2=", "response": "4"}\n', ("2+2=", "4")),
    "a.ndjson": ('{"prompt": "2+2=", "response": "4"}\n', ("2+2=", "4")),
    "lines.json": ('{"prompt": "2+2=", "response": "4"}\n' * 2, ("2+2=", "4")),
    "list.jsonl": ('[\n {"prompt": "2+2=", "response": "4"}\n]', ("2+2=", "4")),
    "excel.csv": ('\ufeffPrompt;Response\r\n"a, b; c";"d\r\ne"\r\n', ("a, b; c", "d\r\ne")),
    "spaces.csv": ("id, PROMPT , response\n1,a,b\n", ("a", "b")),
    "a.TSV": ('prompt\tresponse\nHe said "hi", a; b\tc\n', ('He said "hi", a; b', "c")),
    "tabs.csv": ("prompt\tresponse\na, b\tc\n", ("a, b", "c")),
    "alpaca.json": ('[{"instruction": "Add.", "input": "2, 2", "output": "4"}]', ("Add.\n2, 2", "4")),
    "alpaca2.json": ('[{"instruction": "Add 2, 2.", "input": "", "output": "4", "history": []}]', ("Add 2, 2.", "4")),
    "alpaca3.jsonl": ('{"instruction": "Add 2, 2.", "output": "4"}', ("Add 2, 2.", "4")),
    "plain.jsonl": ('{"input": "2+2", "output": "4"}', ("2+2", "4")),
}


@pytest.mark.parametrize("name", READ)
def test_the_formats_of_others_are_read_as_they_are(name, tmp_path):
    content, pair = READ[name]
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_pairs(tmp_path / name)[0] == conversation(*pair)


def test_chats_of_openai_and_sharegpt_are_read_as_they_are(tmp_path):
    roles = [("system", "system"), ("human", "user"), ("gpt", "assistant"), ("human", "user"), ("gpt", "assistant")]
    expected = [tuple(Turn(role, f"{n}.") for n, (_, role) in enumerate(roles))]
    parts = [[{"type": "text", "text": f"{n}"}, {"type": "text", "text": "."}] for n in range(5)]
    files = {
        "openai": {"messages": [dict(role=role, content=f"{n}.") for n, (_, role) in enumerate(roles)]},
        "parts": {"messages": [dict(role=role, content=parts[n]) for n, (_, role) in enumerate(roles)]},
        "developer": {"messages": [dict(role="developer", content="0."), *(dict(role=role, content=f"{n + 1}.")
                                   for n, (_, role) in enumerate(roles[1:]))]},
        "sharegpt": {"id": "x", "conversations": [{"from": name, "value": f"{n}."}
                                                  for n, (name, _) in enumerate(roles)]},
        "beside": {"system": "0.", "conversations": [{"from": name, "value": f"{n + 1}."}
                                                     for n, (name, _) in enumerate(roles[1:])]},
    }  # fmt: skip
    for name, record in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
        assert read_pairs(tmp_path / f"{name}.json") == expected, name
    (tmp_path / "pair.jsonl").write_text('{"system": "Be brief.", "prompt": "a", "response": "b"}')
    assert read_pairs(tmp_path / "pair.jsonl") == [(Turn("system", "Be brief."), *conversation("a", "b"))]


def test_fields_name_the_prompt_and_the_response(tmp_path):
    (tmp_path / "a.csv").write_text("Frage,Antwort,prompt,response\n1,2,3,4\n")
    assert read_pairs(tmp_path / "a.csv") == [conversation("3", "4")]
    assert read_pairs(tmp_path / "a.csv", ("Frage", "Antwort")) == [conversation("1", "2")]
    assert read_pairs(tmp_path / "a.csv", ("antwort", "prompt")) == [conversation("2", "3")]
    (tmp_path / "b.jsonl").write_text('{"instruction": "1", "input": "2", "output": "3", "messages": []}')
    assert read_pairs(tmp_path / "b.jsonl", ("instruction", "output")) == [conversation("1", "3")]
    with pytest.raises(DataError, match=r"line 2: has no antwrt; it has frage, antwort, prompt, response: say which"):
        read_pairs(tmp_path / "a.csv", ("frage", "antwrt"))


# --- refusals

GOOD = '{"prompt": "a", "response": "b"}\n'
user, assistant = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'
REFUSED = {
    "a.txt": (GOOD, r"a\.txt: is not a known format; give a file whose name ends in \.json, \.jsonl, \.ndjson, \.csv"),
    "noname": (GOOD, "noname: is not a known format"),
    "empty.jsonl": ("", r"empty\.jsonl: has no records; write at least one"),
    "blank.jsonl": ("\n \n", r"blank\.jsonl: has no records"),
    "empty.json": ("", r"empty\.json: has no records"),
    "list.json": ("[]", r"list\.json: has no records"),
    "empty.csv": ("", r"empty\.csv: has no records"),
    "names.csv": ("prompt,response\n", r"names\.csv: has no records"),
    "latin.jsonl": (
        GOOD.encode() + b'{"prompt": "caf\xe9"',
        r"latin\.jsonl: is not UTF-8 at byte 48 .*looks like ISO-8859-1; convert it: iconv -f ISO-8859-1 -t UTF-8",
    ),
    "cut.jsonl": (GOOD + '{"prompt": "a', r"cut\.jsonl: line 2: is not valid JSON \(.*\); repair or remove it"),
    "cut.json": ("[" + GOOD, r"cut\.json: is not valid JSON"),
    "deep.json": ("[" * 100_000, r"deep\.json: is not valid JSON"),
    "object.json": (
        json.dumps({"data": []}, indent=1),
        r"object\.json: must be a list of records, or have one on each line; write \[\.\.\.\] around it",
    ),
    "number.jsonl": ("\n" + GOOD + "7\n", r"number\.jsonl: line 3: must be an object such as .*, got 7$"),
    "record.json": (f"[{GOOD}, 7]", r"record\.json: record 2: must be an object"),
    "lacking.jsonl": ('{"prompt": "a"}', r"line 1: has no response; give both, or messages"),
    "both.jsonl": ('{"text2": "a"}', r"line 1: has no prompt and no response; give both, or messages"),
    "dolly.jsonl": (
        '{"instruction": "a", "context": "b", "response": "c"}',
        r"has no prompt; it has instruction, context, response: say which two with data\.fields=\[instruction,re.*\]",
    ),
    "qa.csv": (
        "Question;Answer\na;b\n",
        r"qa\.csv: line 2: has no prompt and no response; it has question, answer: .*\[question,answer\], in score",
    ),
    "half.jsonl": ('{"prompt": "a", "completion": "b"}', r"has no response; .* data\.fields=\[prompt,completion\]"),
    "other.tsv": ("front\tback\na\tb\n", r"it has front, back: say which two with data\.fields=\[A,B\]"),
    "history.json": (
        '[{"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]]}]',
        r"record 1: has a history, which is not read; write the record as messages",
    ),
    "sharegpt.json": ('[{"conversations": []}]', r"conversations must be a list of .*, got \[\]"),
    "number2.jsonl": (
        '{"prompt": "2+2", "response": 4}',
        r"line 1: response must be a string, got 4; put it in quotes",
    ),
    "null.jsonl": ('{"prompt": null, "response": "a"}', r"line 1: prompt must be a string, got null"),
    "empty2.jsonl": ('{"prompt": "a", "response": ""}', r"line 1: has an empty response; fill it in, or remove"),
    "blank2.csv": ('prompt,response\na," "\n', r"line 2: has an empty response"),
    "few.csv": (
        "prompt,response\na,b\nc\n",
        r"few\.csv: line 3: must have 2 columns as in line 1; put text with commas",
    ),
    "many.csv": ("prompt,response\na,b,c\n", r"many\.csv: line 2: must have 2 columns"),
    "quote.csv": ('prompt,response\n"a,b\n', r"quote\.csv: line 2: is not valid CSV \(unexpected end of data\)"),
    "none.jsonl": ('{"messages": []}', r"line 1: messages must be a list of .*, got \[\]"),
    "text.jsonl": ('{"messages": "hi"}', r'line 1: messages must be a list of .*, got "hi"'),
    "only.jsonl": (
        f'{{"messages": [{user}]}}',
        r"line 1: has no turn of the assistant to train on; add one",
    ),
    "last.jsonl": (
        f'{{"messages": [{assistant}, {user}]}}',
        r"line 1: ends with a turn of the user; end it with the assistant's",
    ),
    "robot.jsonl": (
        '{"messages": [{"role": "asistant", "content": "a"}]}',
        r"message 1: has an unknown role .*mean 'assistant'",
    ),
    "semicolons.csv": (
        "prompt;response\na;b;c\n",
        r"semicolons\.csv: line 2: must have 2 columns as in line 1; put text with semicolons in quotes",
    ),
    "tool.jsonl": (
        f'{{"messages": [{user}, {{"role": "tool", "content": ""}}]}}',
        r"message 2: has an unknown role .*roles are ",
    ),
    "keys.jsonl": (
        '{"messages": [{"from": "user", "content": "a"}]}',
        r"message 1: must be an object with role and cont",
    ),
    "content.jsonl": (
        '{"messages": [{"role": "user", "content": [1]}]}',
        r"message 1: content must be a string, got \[1\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_place_and_the_remedy(name, tmp_path):
    content, problem = REFUSED[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=problem) as caught:
        read_pairs(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.jsonl: no such file of pairs"):
        read_pairs(tmp_path / "nowhere.jsonl")
