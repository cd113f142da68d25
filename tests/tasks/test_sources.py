"""Sources: every way to name files gives the same questions; damaged, missing and foreign files are named;
the Hub."""

import bz2
import decimal
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from stasc_ray.config import Questions
from stasc_ray.tasks.questions import LoadedQuestions, load_questions

ROOT = Path(__file__).resolve().parents[2]


def write_lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def plain(*names: str) -> list[dict[str, Any]]:
    return [{"question": f"What is {name}?", "answers": [name]} for name in names]


def numbers(first: int, last: int) -> list[dict[str, Any]]:
    return plain(*map(str, range(first, last)))


def load_test(source: str, seed: int = 0, **fields: Any) -> LoadedQuestions:
    """All questions of one source, as the test split alone."""
    return load_questions(
        Questions.model_validate({"test": {"source": source}, **fields}), seed, splits=("test",)
    )


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def questions_of(loaded: LoadedQuestions) -> list[str]:
    return sorted(row["question"] for row in loaded.rows)


def test_every_source_gives_the_same_questions(tmp_path: Path) -> None:
    expected = sorted(row["question"] for row in numbers(0, 9))
    whole = write_lines(tmp_path / "whole.jsonl", numbers(0, 9))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(whole).read_bytes()))
    write_lines(tmp_path / "folder" / "a.jsonl", numbers(0, 3))
    write_lines(tmp_path / "folder" / "deeper" / "b.json", numbers(3, 6))
    write_parquet(tmp_path / "folder" / "c.parquet", numbers(6, 9))
    for ignored in ("README.md", "_SUCCESS", ".hidden.jsonl", "_temporary/d.jsonl"):
        write_lines(tmp_path / "folder" / ignored, ["not a row"])
    for source in (
        whole,
        str(packed),
        Path(whole).as_uri(),
        f"{tmp_path}/whole*",
        str(tmp_path / "folder"),
        f"{tmp_path}/fold*",
        write_parquet(tmp_path / "whole.parquet", numbers(0, 9)),
    ):
        assert questions_of(load_test(source)) == expected, source


def test_fsspec_url(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    source = write_lines(tmp_path / "a.jsonl", numbers(0, 4))
    memory.pipe("/questions_url/a.jsonl", Path(source).read_bytes())
    try:
        for url in (
            "memory://questions_url/a.jsonl",
            "memory://questions_url",
            "memory://questions_url/*.jsonl",
        ):
            assert len(load_test(url).rows) == 4
        with pytest.raises(FileNotFoundError, match=r"found nothing at memory://questions_url/b.jsonl"):
            load_test("memory://questions_url/b.jsonl")
    finally:
        memory.rm("/questions_url", recursive=True)


def test_parquet_reads_only_what_it_needs_and_numbers_its_rows(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": float(i), "unique_id": f"u{i}", "big": b"\xff"} for i in range(3)]
    rows[2]["problem"] = None
    source = write_parquet(tmp_path / "math.parquet", rows)
    with pytest.raises(ValueError, match=r"math.parquet, row 3: no question"):
        load_test(source, preset="math500")
    loaded = load_test(source, preset="math500", on_bad_row="skip")
    assert sorted((row["id"], row["answers"][0]) for row in loaded.rows) == [("u0", "0"), ("u1", "1")]


def test_parquet_without_a_needed_column(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [{"query": "q", "answers": "a"}])
    with pytest.raises(
        ValueError, match=r"rows.parquet: expected column 'question', found 'query', 'answers'"
    ):
        load_test(source, on_bad_row="skip")


@pytest.mark.parametrize("name", ["broken.parquet", "broken.jsonl.gz"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    good = Path(write_parquet(tmp_path / "good.parquet", numbers(0, 50))).read_bytes()
    if name.endswith("gz"):
        good = gzip.compress(json.dumps({"question": "q", "answers": "a"}).encode() * 50)
    (tmp_path / name).write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=name):
        load_test(str(tmp_path / name), on_bad_row="skip")


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "./missing", "/nowhere/missing", "a/b/c", "missing*.jsonl", "x.parquet"]
)
def test_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no"):
        load_test(source)


def test_file_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected JSON lines.*csv.* or Parquet .*, found .*rows.xlsx"):
        load_test(write_lines(tmp_path / "rows.xlsx", ["question,answers"]))
    write_lines(tmp_path / "saved" / "data-00000.arrow", ["x"])
    write_lines(tmp_path / "saved" / "dataset_info.json", [{"features": {}}])
    with pytest.raises(FileNotFoundError, match=r"found none: it holds Arrow files .* `to_parquet`"):
        load_test(str(tmp_path / "saved"))


# --- JSON that is no lines

ROWS = [{"question": f"q{number}", "answers": [str(number)]} for number in range(3)]
SQUAD = {
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {"context": f"c{n}", "qas": [{"id": n, "question": f"q{n}", "answers": [{"text": f"{n}"}]}]}
                for n in range(3)
            ],
        }
    ]
}
DROP = {
    f"nfl_{n}": {"passage": f"c{n}", "qa_pairs": [{"question": f"q{n}", "answer": f"{n}"}]} for n in range(3)
}


def found(path: Path, raw: bytes, **fields: Any) -> list[tuple[str, str]]:
    path.write_bytes(raw)
    return sorted((row["question"], row["answers"][0]) for row in load_test(str(path), **fields).rows)


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (ROWS, {}),
        ({"examples": ROWS}, {}),
        ({"version": 1, "data": ROWS}, {}),
        ({"a": [{"x": 1}], "b": ROWS}, {}),
        (SQUAD, {"rows": "data[].paragraphs[].qas[]", "answers": "answers[].text", "documents": "context"}),
        (DROP, {"rows": "*.qa_pairs[]", "answers": "answer", "documents": "passage"}),
        ({"0": ROWS[0], "1": {**ROWS[1], "more": 1}, "2": ROWS[2]}, {}),
        ({"train": ROWS[:1], "test": ROWS[1:]}, {"rows": "*[]"}),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_that_is_one_value(tmp_path: Path, value: Any, columns: Any, indent: Any, mark: bytes) -> None:
    raw = mark + json.dumps(value, indent=indent).encode()
    rows = found(tmp_path / "d.json", raw, columns=columns)
    assert rows == [("q0", "0"), ("q1", "1"), ("q2", "2")]
    if "documents" in columns:
        assert load_test(str(tmp_path / "d.json"), columns=columns).rows[0]["documents"][0][0] == "c"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lines_that_end_in_commas(tmp_path: Path, count: int) -> None:
    lines = [json.dumps(row) + end for row, end in zip(ROWS, (",", " , ", ""), strict=True)]
    assert len(found(tmp_path / "d.jsonl", "\r\n".join(lines[:count]).encode())) == count
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2: unreadable"):
        found(tmp_path / "d.jsonl", "\n".join([lines[0], lines[1] + ","]).encode())


def test_rows_inside_the_lines(tmp_path: Path) -> None:
    """MRQA's and QuAC's shape: a line is a passage with its questions."""
    lines = [json.dumps(paragraph) for paragraph in SQUAD["data"][0]["paragraphs"]]
    columns = {"rows": "qas[]", "answers": "answers[].text"}
    raw = "\n".join(lines).encode()
    assert len(found(tmp_path / "d.jsonl", raw, columns=columns)) == 3
    with pytest.raises(ValueError, match=r"line 1: no question.*set questions.columns.rows = 'qas\[\]'"):
        found(tmp_path / "d.jsonl", raw)
    with pytest.raises(ValueError, match=r"line 2: unreadable: .*rows 'qas\[\]': expected the key 'qas'"):
        found(tmp_path / "d.jsonl", f'{lines[0]}\n{{"header": 1}}'.encode(), columns=columns)


def test_an_array_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [
        {"question": f"caf\u00e9 {number} " + "x" * 700, "answers": str(number)} for number in range(4000)
    ]
    for indent in (None, 0):
        raw = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
        assert len(raw) > 2 << 20
        assert len(found(tmp_path / "d.json", raw)) == 4000
        with pytest.raises(
            ValueError, match=r"d.json: expected a JSON array, could not .* after element 39\d\d"
        ):
            found(tmp_path / "d.json", raw[: -20 * 800])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b'[\n{"question":"q1","answers":"a"},\n{"question"',
            "d.json: expected a JSON array, .* after element 1",
        ),
        (b'[{"question":"q","answers":"a"}, 3]', "element 2: unreadable: .* found an int"),
        (b'["q", "a"]\n["r", "b"]', "element 1: unreadable: .* found a str"),
        (b'[{"question":"q","answers":"a"}]{}', "expected nothing behind its end, found '{}'"),
        (json.dumps({"data": [{"text": "q"}]}).encode(), "data.* row 1: no question: .* found only 'text'"),
        (json.dumps({"train": [{"q": 1}], "test": [{"q": 2}]}).encode(), "found only 'train', 'test'"),
        (json.dumps(SQUAD).encode(), r"set questions.columns.rows = 'data\[\].paragraphs\[\].qas\[\]'"),
        *(
            (json.dumps(value).encode(), f"in one place, found them at {places}: set questions.columns.rows")
            for value, places in [
                ({"train": ROWS, "test": ROWS[:1]}, r"'train\[\]', 'test\[\]'"),
                ({"train": [{"id": 1}, ROWS[0]], "test": ROWS[:1]}, r"'train\[\]', 'test\[\]'"),
                ({"data": {"train": ROWS[:1], "test": ROWS[1:]}}, r"'data.train\[\]', 'data.test\[\]'"),
                ({"train": {"a": ROWS[0], "b": ROWS[1]}, "test": {"c": ROWS[2]}}, r"'train.\*', 'test.c'"),
            ]
        ),
        (json.dumps({"a": ROWS[0], "b": {"answers": "x"}}).encode(), r"\* row 2: no question"),
        (b'{"question":["q","r"],"answers":["a","b"]}', "a table by column: write it by row"),
        (b'{"question":{"0":"q"},"answers":{"0":"a"}}', "a table by column: write it by row"),
        (json.dumps(DROP, indent=2).encode(), r"set questions.columns.rows = '\*.qa_pairs\[\]'"),
    ],
)
def test_json_that_is_not_understood(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(tmp_path / "d.json", raw)


# --- CSV

CSV = 'question,answers,split\n"a, ""b""\nc",x,train\n\nq2,"[""a"", ""b""]",test\n'


def test_csv_and_tsv(tmp_path: Path) -> None:
    expected = [('a, "b"\nc', "x"), ("q2", "a")]
    for name, raw in {
        "d.csv": CSV.encode(),
        "bom.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
        "d.tsv": CSV.replace('"a, ', '"a\t ').replace(",", "\t", 2).encode(),
    }.items():
        if name != "d.tsv":
            rows = found(tmp_path / name, raw)
            assert [(question.replace("\r", ""), answer) for question, answer in rows] == expected
    lines = "question;answers\na, b;x\n"
    assert found(tmp_path / "semicolons.csv", lines.encode()) == [("a, b", "x")]
    assert found(tmp_path / "tabs.tsv", lines.replace(";", "\t").encode()) == [("a, b", "x")]
    assert found(
        tmp_path / "d.csv", CSV.encode(), test={"source": str(tmp_path / "d.csv"), "split": "test"}
    ) == [("q2", "a")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (CSV.encode() + b"q,b\n", "d.csv, line 6: unreadable: expected 3 values .*, found 2"),
        (CSV.encode() + b'q,"b,x\n', "d.csv: could not read it after line 5: unexpected end"),
        (CSV.encode() + b'"q" or,b,x\n', "d.csv: could not read it after line 5.*A quote in a text"),
        (CSV.encode() + b"caf\xe9,b,x\n", "d.csv: expected text in UTF-8"),
        (CSV.encode("utf-16"), "d.csv: expected a .csv file, found text in UTF-16"),
        (b"question,question,answers\n", "d.csv: expected each column once, found 'question' twice"),
        (b"frage,answers\nq,a\n", "d.csv: expected column 'question', found 'frage', 'answers'"),
        (b"", "expected questions in .*d.csv, found none"),
    ],
)
def test_bad_csv(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(tmp_path / "d.csv", raw)


def test_quotes_never_join_the_rows_of_a_tsv(tmp_path: Path) -> None:
    for on_bad_row in ("fail", "skip"):
        with pytest.raises(ValueError, match=r"d\.tsv: .* a quote at line 2 that ends only at line 3"):
            found(tmp_path / "d.tsv", b'question\tanswers\n"x\ta\ny"\tb\n', on_bad_row=on_bad_row)
    assert found(tmp_path / "d.tsv", b'question\tanswers\n"x ""y"""\ta\n') == [('x "y"', "a")]


# --- files that are not what their name says

LINE = b'{"question":"q","answers":"a"}\n'
PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: zstandard.ZstdCompressor(write_checksum=True).compress(raw),
}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    pack = PACKED[ending]
    lines = [json.dumps({"question": f"q{n}", "answers": f"{n}"}).encode() + b"\n" for n in range(2000)]
    for raw in (pack(b"".join(lines)), pack(b"".join(lines[:9])) + pack(b"".join(lines[9:]))):
        assert len(found(tmp_path / f"d.jsonl.{ending}", raw)) == 2000
    assert found(tmp_path / f"d.csv.{ending}", pack(b"question,answers\nq,a\n")) == [("q", "a")]
    packed = pack(b"".join(lines))
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:-3], packed[:middle] + b"XXXX" + packed[middle + 4 :]):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/d.jsonl.{ending}: the \w+ file is damaged"):
            found(tmp_path / f"d.jsonl.{ending}", damaged, on_bad_row="skip")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/d.jsonl.{ending}: expected a \w+ file, .* it is none"
    ):
        found(tmp_path / f"d.jsonl.{ending}", LINE)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/d.jsonl: is compressed \(\w+\): name it .jsonl.{ending}"
    ):
        found(tmp_path / "d.jsonl", packed)
    with pytest.raises(ValueError, match="found an empty one"):
        found(tmp_path / f"d.jsonl.{ending}", b"")


def test_what_a_compressed_file_holds_is_looked_at(tmp_path: Path) -> None:
    with io.BytesIO() as held, tarfile.open(fileobj=held, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("d.jsonl"))
        packed = held.getvalue()
    for ending, pack in PACKED.items():
        path = tmp_path / f"d.jsonl.{ending}"
        with pytest.raises(
            ValueError, match=r"d.jsonl.\w+: is compressed twice \(gzip in \w+\): unpack it once$"
        ):
            found(path, pack(gzip.compress(LINE)), on_bad_row="skip")
        with pytest.raises(
            ValueError, match=r"file in the \w+ file, found a tar file, an archive: unpack it"
        ):
            found(path, pack(packed + b"\0" * 512), on_bad_row="skip")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z file"),
        (b"Rar!\x1a\x07\1\0", "a RAR file"),
        (b"\x04\x22\x4d\x18\x64", "an lz4 file"),
        (b"SQLite format 3\x00\x10", "an SQLite database"),
        (b"/annex/objects/SHA256E-s5--a.jsonl\n", "git annex get"),
        (b"../.git/annex/objects/xx/yy/MD5E-s5", "git annex get"),
        (LINE.decode().encode("utf-32"), "text in UTF-32"),
        (LINE.decode().encode("utf-16"), "text in UTF-16"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 41\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"PK\x03\x04\x14", "a ZIP file"),
        (b"\xff\xfe{\x00", "text in UTF-16: save it as UTF-8"),
        (b"PAR1\x15", "a Parquet file: name it .parquet"),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_a_file_is_named_for_what_it_is(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    if name == "d.parquet":
        message = message.replace("a Parquet file: name it .parquet", "could not read it")
        with pytest.raises(ValueError, match=r"d.parquet: expected a Parquet file, found .*\.jsonl, \.json"):
            found(tmp_path / name, LINE, on_bad_row="skip")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}: expected .*{message}"):
        found(tmp_path / name, raw, on_bad_row="skip")


# --- values of Parquet

KINDS = [
    (pyarrow.array([decimal.Decimal("3.00")], pyarrow.decimal128(10, 2)), ["3"]),
    (pyarrow.array([b"a"], pyarrow.binary()), ["a"]),
    (pyarrow.array([0.1], pyarrow.float32()), ["0.1"]),
    (pyarrow.array([1e-5], pyarrow.float64()), ["0.00001"]),
    (pyarrow.array([[0.1, None, 2]], pyarrow.list_(pyarrow.float32())), ["0.1", "2"]),
    (pyarrow.array([True]), ["yes"]),
]


@pytest.mark.parametrize(("answers", "expected"), KINDS, ids=[str(array.type) for array, _ in KINDS])
def test_parquet_values_are_as_people_write_them(tmp_path: Path, answers: Any, expected: list[str]) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"question": ["q"], "answers": answers}), tmp_path / "d.parquet"
    )
    assert load_test(str(tmp_path / "d.parquet")).rows[0]["answers"] == expected


def test_parquet_columns_inside_others(tmp_path: Path) -> None:
    rows = [
        {"q.a": "q", "other": 1, "answers": {"text": ["a", "b"], "at": [1, 2]}, "value": {"x": 0.1, "y": 0.2}}
    ]
    kind = pyarrow.struct({"x": pyarrow.float32(), "y": pyarrow.float64()})
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(3, "value", pyarrow.array([rows[0]["value"]], kind))
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    columns = {"question": "q.a", "answers": ["answers.text", "missing.key", "value.x", "value.y"]}
    (row,) = load_test(str(tmp_path / "d.parquet"), columns=columns).rows
    assert (row["question"], row["answers"]) == ("q", ["a", "b", "0.1", "0.2"])
    with pytest.raises(ValueError, match="expected text in UTF-8, found bytes"):
        pyarrow.parquet.write_table(
            pyarrow.table({"question": [b"\xff"], "answers": ["a"]}), tmp_path / "d.parquet"
        )
        load_test(str(tmp_path / "d.parquet"))


HUB_SCRIPT = """
import json, os, pathlib, sys
home = pathlib.Path(sys.argv[1])
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(home / "cache"), HF_HOME=str(home))
import datasets
datasets.load_dataset(str(home / "name"))  # leaves in the cache what a download would, under the name of the folder ...
(home / "cache" / "name").rename(home / "cache" / "owner___name")  # ... and now under that of a Hub id
from stasc_ray.config import Questions
from stasc_ray.tasks.questions import load_questions
hub = {"preset": "commonsense_qa", "columns": {"answers": "answerKey"}, "on_bad_row": "skip"}
train = {"source": "owner/name", "split": "train"}
loaded = load_questions(Questions(**hub, train=train, dev={"limit": 2}, test={"split": "validation"}), 0)
problems = []
for wrong in ({"source": "owner/name", "split": "dev"}, {"source": "owner/absent"}):
    try:
        load_questions(Questions(**hub, test=wrong), 0, splits=("test",))
    except (FileNotFoundError, ValueError) as error:
        problems.append(f"{type(error).__name__} {error}")
every = load_questions(Questions(**hub, test={"source": "owner/name"}), 0, splits=("test",))
print(json.dumps([loaded.rows, loaded.bad_row_examples, len(every.rows), problems]))
"""


@pytest.mark.slow
def test_hub_dataset_from_the_offline_cache(tmp_path: Path) -> None:
    def row(name: str, key: str) -> dict[str, Any]:
        choices = {"label": ["A", "B"], "text": [f"{name} one", f"{name} two"]}
        return {
            "id": name,
            "question": f"Which {name}?",
            "question_concept": "x",
            "choices": choices,
            "answerKey": key,
        }

    write_parquet(tmp_path / "name" / "train.parquet", [row(f"t{i}", "AB"[i % 2]) for i in range(6)])
    write_parquet(tmp_path / "name" / "validation.parquet", [row("v0", "B"), row("v1", "")])
    result = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows, bad, every, problems = json.loads(result.stdout.splitlines()[-1])
    assert Counter(row["split"] for row in rows) == {"train": 4, "dev": 2, "test": 1}
    assert [row["answers"] for row in rows if row["id"] == "v0"] == [["B"]]
    assert bad[0].startswith("owner/name [validation], row 2: no answer") and every == 7
    assert problems[0].startswith("ValueError") and "train" in problems[0]
    assert problems[1].startswith("FileNotFoundError questions: 'owner/absent' is no path here")


def test_hub_id_without_datasets_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("raise ImportError('not installed')\n")
    script = "import stasc_ray.tasks.sources as s; list(s.records('owner/name', ['q'], [], [None], None))"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert "pip install 'stasc-ray[hub]'" in result.stderr


def test_the_published_configuration_and_splits_are_filled_in() -> None:
    hub = {"source": "openai/gsm8k"}
    questions = Questions.model_validate({"preset": "gsm8k", "train": hub, "test": hub, "dev": {"limit": 9}})
    assert (questions.hub_config, questions.train.split, questions.test.split) == ("main", "train", "test")
    assert Questions.model_validate(questions.model_dump(mode="json")) == questions
    own = {"train": {**hub, "split": None}, "test": {**hub, "split": "x"}, "hub_config": "socratic"}
    questions = Questions.model_validate({"preset": "gsm8k", **own})
    assert (questions.hub_config, questions.train.split, questions.test.split) == ("socratic", None, "x")
    questions = Questions.model_validate({"preset": "gsm8k", "test": {"source": "a.jsonl"}})
    assert (questions.hub_config, questions.test.split) == (None, None)


def test_a_dataset_that_does_not_ship_is_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"questions.preset: did you mean 'nq_open'\? .*Found 'nq_opne'"):
        Questions.model_validate({"preset": "nq_opne"})
    with pytest.raises(ValueError, match=r"expected one of .*gsm8k.*`stasc datasets`"):
        Questions.model_validate({"preset": "0"})
