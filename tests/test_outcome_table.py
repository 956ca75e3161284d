"""The outcome table: what is read is what was written, and every bad row is named."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_ml.errors import TableError
from training.outcome_table import OutcomeTable, from_columns, group_folds, read_table, write_table
from training.simulate import World

FORMATS = ("parquet", "csv", "jsonl", "ndjson")
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": 'Good day, 你好 — "what" now?\nWell?'}]


def outcome(request_id: str = "a", model: str = "acme/small", **changes: Any) -> dict[str, Any]:
    row = {"request_id": request_id, "prompt": f"Please water plant {request_id}.", "model": model, "score": 1.0}
    row.update(changes)
    return {name: value for name, value in row.items() if value is not ...}


def json_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def csv_file(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet_file(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def problems_of(act: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(TableError) as caught:
        act()
    return caught.value.problems


def problems_in(tmp_path: Path, *rows: Any) -> tuple[str, ...]:
    path = json_lines(tmp_path / "bad.jsonl", rows)
    return tuple(problem.replace(str(path), "bad.jsonl") for problem in problems_of(lambda: read_table(path)))


# Reading and writing


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_written_table_reads_back_equal(tmp_path: Path, suffix: str) -> None:
    table = World(3).sample(200, models_per_request=2).table
    write_table(table, tmp_path / f"t.{suffix}")
    back = read_table(tmp_path / f"t.{suffix}")
    assert back.fingerprint() == table.fingerprint()
    assert back.prompts == table.prompts
    assert back.group == table.group
    np.testing.assert_array_equal(back.dense("cost_usd"), table.dense("cost_usd"))


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
amounts = st.none() | st.floats(0, 1e12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(words, words | st.just(CHAT), st.floats(0, 1), amounts, st.none() | words, st.none() | words),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0],
    ),
    suffix=st.sampled_from(FORMATS),
)
def test_any_text_and_number_survives_every_format(tmp_path: Path, rows: list[Any], suffix: str) -> None:
    ids, asked, scores, costs, tasks, groups = (list(column) for column in zip(*rows, strict=True))
    table = from_columns(
        {
            "request_id": ids,
            "prompt": [text if isinstance(text, str) else None for text in asked],
            "messages": [None if isinstance(text, str) else text for text in asked],
            "model": ["m"] * len(rows),
            "score": scores,
            "cost_usd": costs,
            "task": tasks,
            "group": groups,
        }
    )
    write_table(table, tmp_path / f"t.{suffix}")
    back = read_table(tmp_path / f"t.{suffix}")
    assert back.prompts == asked
    assert (back.request_ids, back.task, back.group) == (table.request_ids, table.task, table.group)
    assert back.fingerprint() == table.fingerprint()


def test_several_files_of_different_formats_become_one_table(tmp_path: Path) -> None:
    table = World(1).sample(90).table
    for i, suffix in enumerate(("csv", "jsonl", "parquet")):
        write_table(table.select_requests(np.arange(30 * i, 30 * i + 30)), tmp_path / f"part.{suffix}")
    back = read_table([tmp_path / f"part.{suffix}" for suffix in ("csv", "jsonl", "parquet")])
    assert back.fingerprint() == table.fingerprint()


def test_a_sparse_table_has_nan_where_a_model_was_not_tried(tmp_path: Path) -> None:
    rows = [outcome("a", "m2", score=0.25), outcome("b", "m1", score=1), outcome("a", "m1", score=0, cost_usd=0.5)]
    table = read_table(json_lines(tmp_path / "t.jsonl", rows))
    assert table.models == ("m1", "m2")
    assert table.request_ids == ["a", "b"]
    np.testing.assert_array_equal(table.dense("score"), [[0.0, 0.25], [1.0, np.nan]])
    np.testing.assert_array_equal(table.dense("cost_usd"), [[0.5, np.nan], [np.nan, np.nan]])


def test_optional_columns_default_to_null_and_group_to_the_request(tmp_path: Path) -> None:
    table = read_table(csv_file(tmp_path / "t.csv", [outcome("a"), outcome("b")]))
    assert table.group == ["a", "b"]
    assert table.group_codes.tolist() == [0, 1]
    assert table.task == table.source == table.segment == [None, None]
    for name in (
        "cost_usd",
        "input_tokens",
        "output_tokens",
        "latency_s",
        "turns",
        "tool_calls",
        "timestamp",
        "propensity",
    ):
        assert np.isnan(getattr(table, name)).all()


def test_a_label_given_on_one_row_of_a_request_holds_for_all_of_it(tmp_path: Path) -> None:
    rows = [outcome("a", "m1"), outcome("a", "m2", task="chat"), outcome("b", "m1", task="code")]
    assert read_table(json_lines(tmp_path / "t.jsonl", rows)).task == ["chat", "code"]


def test_unknown_columns_are_the_users_own(tmp_path: Path) -> None:
    assert read_table(csv_file(tmp_path / "t.csv", [outcome(colour="green")])).n_rows == 1


@pytest.mark.parametrize("null", ["", "NaN", "null", "None", "n/a"])
def test_spellings_of_null_in_csv_numbers_are_null(tmp_path: Path, null: str) -> None:
    assert math.isnan(read_table(csv_file(tmp_path / "t.csv", [outcome(cost_usd=null)])).cost_usd[0])


def test_the_word_null_is_a_prompt_in_csv(tmp_path: Path) -> None:
    assert read_table(csv_file(tmp_path / "t.csv", [outcome(prompt="null")])).prompts == ["null"]


def test_csv_with_a_byte_order_mark_and_line_breaks_in_cells(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "t.csv", [outcome(prompt='one\ntwo, "three"'), outcome("b")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_table(path).prompts == ['one\ntwo, "three"', "Please water plant b."]


@pytest.mark.parametrize(
    "given_time",
    [1767225600, "2026-01-01T00:00:00Z", "2026-01-01 01:00:00+01:00", "2026-01-01", "1767225600"],
)
@pytest.mark.parametrize("make", [json_lines, csv_file])
def test_times_are_read_as_seconds_since_1970(tmp_path: Path, make: Callable[..., Path], given_time: Any) -> None:
    path = make(tmp_path / ("t.csv" if make is csv_file else "t.jsonl"), [outcome(timestamp=given_time)])
    assert read_table(path).timestamp.tolist() == [1767225600.0]


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("ns", tz="Asia/Tokyo"), pa.date32(), pa.string()])
def test_arrow_times_are_read_as_seconds_since_1970(tmp_path: Path, kind: pa.DataType) -> None:
    days = pa.array([20454], pa.int32()).cast(pa.date32())
    times = pa.array(["2026-01-01"]) if kind == pa.string() else days.cast(kind)
    pq.write_table(pa.table({**{k: [v] for k, v in outcome().items()}, "timestamp": times}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").timestamp.tolist() == [1767225600.0]


def test_messages_may_be_lists_or_json_text_and_mean_the_same(tmp_path: Path) -> None:
    row = outcome(prompt=..., messages=CHAT)
    spaced = json.dumps([dict(reversed(message.items())) for message in CHAT], indent=2)
    paths = [
        json_lines(tmp_path / "list.jsonl", [row]),
        json_lines(tmp_path / "text.jsonl", [row | {"messages": spaced}]),
        csv_file(tmp_path / "text.csv", [row | {"messages": spaced}]),
        parquet_file(tmp_path / "list.parquet", [row]),
    ]
    assert len({read_table(path).fingerprint() for path in paths}) == 1
    assert read_table(paths[0]).prompts == [CHAT]


def test_keys_that_arrow_adds_to_messages_are_taken_away_again(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "dry"},
    ]
    path = parquet_file(tmp_path / "t.parquet", [outcome(prompt=..., messages=messages)])
    assert read_table(path).prompts == [messages]


def test_messages_are_the_request_where_a_row_has_both(tmp_path: Path) -> None:
    assert read_table(json_lines(tmp_path / "t.jsonl", [outcome(messages=CHAT)])).prompts == [CHAT]


def test_categories_decimals_and_narrow_integers_of_parquet_are_read(tmp_path: Path) -> None:
    columns = {
        "request_id": pa.array(["b", "a"]).dictionary_encode(),
        "prompt": pa.array(["two", "one"], pa.large_string()),
        "model": pa.DictionaryArray.from_arrays(pa.array([2, 0], pa.int8()), ["m1", "unused", "m2"]),
        "score": pa.array([1, 0], pa.int8()),
        "cost_usd": pa.array([1, 2]).cast(pa.decimal128(21, 2)),
        "task": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert (table.request_ids, table.models) == (["b", "a"], ("m1", "m2"))
    assert table.cost_usd.tolist() == [1.0, 2.0]
    assert table.dense("score")[:, 0].tolist()[1] == 0.0


def test_written_parquet_holds_plain_strings_for_other_readers(tmp_path: Path) -> None:
    write_table(from_columns({name: [value] for name, value in outcome().items()}), tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.names == ["request_id", "prompt", "model", "score"]
    assert schema.field("prompt").type == pa.string()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    table = from_columns({name: [value] for name, value in outcome().items()})
    old = tmp_path / "t.csv"
    old.write_text("old")
    broken = dataclasses.replace(table, prompts=[object()])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        write_table(broken, old)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# Bad files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (problem,) = problems_of(lambda: read_table(tmp_path / "gone.csv"))
    assert "gone.csv" in problem and "No such file" in problem


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").touch()
    (problem,) = problems_of(lambda: read_table(tmp_path / f"t.{suffix}"))
    assert "the file is empty" in problem


def test_a_file_of_a_header_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("request_id,prompt,model,score\n")
    assert "no rows" in problems_of(lambda: read_table(tmp_path / "t.csv"))[0]


def test_no_files_at_all_are_refused() -> None:
    assert "no rows" in problems_of(lambda: read_table([]))[0]


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("x")
    (problem,) = problems_of(lambda: read_table(tmp_path / "t.xlsx"))
    assert ".xlsx" in problem and ".parquet" in problem
    table = from_columns({name: [value] for name, value in outcome().items()})
    assert ".xlsx" in problems_of(lambda: write_table(table, tmp_path / "t.xlsx"))[0]


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "t.parquet", [outcome()])
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read as .parquet" in problems_of(lambda: read_table(path))[0]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").mkdir()
    assert "cannot be read" in problems_of(lambda: read_table(tmp_path / "t.jsonl"))[0]


@pytest.mark.parametrize("make", [json_lines, csv_file, parquet_file])
@pytest.mark.parametrize("column", ["request_id", "model", "score", "prompt"])
def test_a_missing_column_is_named_once(tmp_path: Path, make: Callable[..., Path], column: str) -> None:
    suffix = {json_lines: "jsonl", csv_file: "csv", parquet_file: "parquet"}[make]
    rows = [{name: value for name, value in outcome(i).items() if name != column} for i in "ab"]
    path = make(tmp_path / f"t.{suffix}", rows)
    (problem,) = problems_of(lambda: read_table(path))
    assert f"column {column}" in problem and "is missing" in problem


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("request_id,prompt,model,score,score\na,hello,m,1,0\n")
    assert "column score appears 2 times" in problems_of(lambda: read_table(tmp_path / "t.csv"))[0]


def test_a_csv_row_with_too_many_cells_is_named_and_later_rows_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('request_id,prompt,model,score\na,"one\ntwo",m,1\nb,x,m,1,9\nc,y,m,7\n')
    ragged, score = problems_of(lambda: read_table(tmp_path / "t.csv"))
    assert "row 2, the row: has 5 cells; the header has 4" in ragged
    assert "row 3, score: is 7.0" in score


def test_a_csv_cell_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"request_id,prompt,model,score\na,ok,m,1\nb,caf\xe9,m,1\n")
    (problem,) = problems_of(lambda: read_table(tmp_path / "t.csv"))
    assert "row 2, prompt: is not UTF-8 text" in problem


def test_a_line_that_is_not_json_is_named_by_row_and_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(outcome()) + "\n\n{oops}\n" + json.dumps(outcome("c", score=2)) + "\n")
    broken, score = problems_of(lambda: read_table(tmp_path / "t.jsonl"))
    assert "row 2, the row: line 3 is not JSON" in broken
    assert "row 3, score" in score


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome(), [1, 2])
    assert "row 2" in problem and "expected a JSON object" in problem


def test_a_line_of_json_nested_without_end_is_refused_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("[" * 200_000 + "\n")
    assert "row 1" in problems_of(lambda: read_table(tmp_path / "t.jsonl"))[0]


@pytest.mark.parametrize("column", ["score", "prompt", "cost_usd", "messages"])
def test_a_parquet_column_of_the_wrong_type_is_one_problem(tmp_path: Path, column: str) -> None:
    wrong: Any = {"score": "high", "prompt": 3, "cost_usd": True, "messages": 4}[column]
    path = parquet_file(tmp_path / "t.parquet", [outcome(i) | {column: wrong} for i in "abc"])
    (problem,) = problems_of(lambda: read_table(path))
    assert f"column {column} is" in problem


# Bad rows


def test_a_row_without_prompt_and_messages_is_named(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", prompt=None))
    assert problem.startswith("bad.jsonl row 2, prompt: is missing or empty")


@pytest.mark.parametrize("prompt", ["", "  \n\t", "\u3000"])
def test_an_empty_prompt_is_named(tmp_path: Path, prompt: str) -> None:
    (problem,) = problems_in(tmp_path, outcome(prompt=prompt))
    assert "row 1, prompt: is missing or empty" in problem


@pytest.mark.parametrize("column", ["request_id", "model"])
@pytest.mark.parametrize("value", [None, "", " "])
def test_a_row_without_request_id_or_model_is_named(tmp_path: Path, column: str, value: str | None) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b") | {column: value})
    assert f"row 2, {column}: is missing or empty" in problem


@pytest.mark.parametrize("score", [None, math.nan])
def test_a_missing_score_is_named(tmp_path: Path, score: float | None) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", score=score))
    assert "row 2, score: is missing or NaN" in problem


@pytest.mark.parametrize("score", [1.7, -0.1, math.inf, 1.0000001])
def test_a_score_outside_0_to_1_is_named_with_its_value(tmp_path: Path, score: float) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", score=score))
    assert f"row 2, score: is {score}; expected a number from 0 to 1" in problem


@pytest.mark.parametrize("column", ["cost_usd", "input_tokens", "output_tokens", "latency_s", "turns", "tool_calls"])
@pytest.mark.parametrize("value", [-1, math.inf, -math.inf])
def test_a_negative_or_infinite_amount_is_named(tmp_path: Path, column: str, value: float) -> None:
    (problem,) = problems_in(tmp_path, outcome() | {column: value})
    assert f"row 1, {column}: is {float(value)}" in problem


@pytest.mark.parametrize("propensity", [0, -0.5, 1.5, math.inf])
def test_a_propensity_outside_0_to_1_is_named(tmp_path: Path, propensity: float) -> None:
    (problem,) = problems_in(tmp_path, outcome(propensity=propensity))
    assert f"row 1, propensity: is {float(propensity)}" in problem


@pytest.mark.parametrize("moment", ["yesterday", math.inf, "2026-13-01"])
def test_a_time_that_is_none_is_named(tmp_path: Path, moment: Any) -> None:
    (problem,) = problems_in(tmp_path, outcome(timestamp=moment))
    assert "row 1, timestamp: is " in problem and "ISO 8601" in problem


@pytest.mark.parametrize("value", ["0.5", True, [1], {"a": 1}, 10**400])
def test_a_number_of_the_wrong_type_is_named(tmp_path: Path, value: Any) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", cost_usd=value))
    assert "row 2, cost_usd: is " in problem


@pytest.mark.parametrize("column", ["request_id", "prompt", "model", "task"])
def test_a_text_of_the_wrong_type_is_named_once(tmp_path: Path, column: str) -> None:
    (problem,) = problems_in(tmp_path, outcome("a", task="t"), outcome("b") | {column: 17})
    assert f"row 2, {column}: is 17; expected text" in problem


@pytest.mark.parametrize("value", ["1,5", "1_000", "high", "true"])
def test_a_csv_number_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    path = csv_file(tmp_path / "t.csv", [outcome("a"), outcome("b", score=value)])
    first = problems_of(lambda: read_table(path))[0]
    assert f"row 2, score: is '{value}'; expected a number" in first


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", prompt="odd \ud800 text"))
    assert "row 2, prompt: holds half of a surrogate pair at character 4" in problem


@pytest.mark.parametrize(
    "messages",
    [
        "not json",
        [],
        [{"role": "wizard", "content": "hi"}],
        [{"role": "system", "content": "hi"}],
        [1],
        {"role": "user"},
    ],
)
def test_messages_that_cannot_be_read_are_named(tmp_path: Path, messages: Any) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", messages=messages))
    assert "row 2, messages: " in problem


def test_half_a_surrogate_pair_spelled_as_an_escape_is_named(tmp_path: Path) -> None:
    text = '[{"role": "user", "content": "odd \\ud800 text"}]'
    (problem,) = problems_of(lambda: read_table(csv_file(tmp_path / "t.csv", [outcome(prompt="", messages=text)])))
    assert "row 1, messages: " in problem and "surrogates not allowed" in problem


def test_messages_of_the_wrong_type_are_not_also_missing(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b", prompt=..., messages="\ud800"))
    assert "row 2, messages: " in problem


def test_a_second_row_for_one_request_and_model_is_named_with_the_first(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome("a"), outcome("b"), outcome("a", score=0.0))
    assert problem.startswith("bad.jsonl row 3, model: repeats") and "row 1" in problem


def test_one_request_id_with_two_prompts_is_named(tmp_path: Path) -> None:
    (problem,) = problems_in(tmp_path, outcome("a", "m1"), outcome("a", "m2", prompt="Something else."))
    assert problem.startswith("bad.jsonl row 2, prompt: is not that of the same request_id in") and "row 1" in problem


@pytest.mark.parametrize("column", ["task", "source", "group", "segment"])
def test_one_request_id_with_two_labels_is_named(tmp_path: Path, column: str) -> None:
    (problem,) = problems_in(tmp_path, outcome("a", "m1", **{column: "x"}), outcome("a", "m2", **{column: "y"}))
    assert f"row 2, {column}: is not that of the same request_id" in problem


def test_contradictions_between_files_name_both_files(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "first.jsonl", [outcome("z"), outcome("a")])
    second = csv_file(tmp_path / "second.csv", [outcome("a", prompt="Another one.")])
    found = problems_of(lambda: read_table([first, second]))
    assert len(found) == 2
    for problem in found:
        assert "second.csv row 1" in problem and "first.jsonl row 2" in problem


def test_every_problem_of_every_file_is_reported_in_order(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "one.jsonl", [outcome("a", score=2), outcome("b"), outcome("c", cost_usd=-1)])
    second = csv_file(tmp_path / "two.csv", [outcome("d", score="x", propensity=3), outcome("e", prompt=" ")])
    found = problems_of(lambda: read_table([first, second, tmp_path / "three.csv"]))
    places = ["one.jsonl row 1, score", "one.jsonl row 3, cost_usd", "two.csv row 1, propensity"]
    places += ["two.csv row 1, score", "two.csv row 2, prompt", "three.csv"]
    assert len(found) == len(places)
    for problem, place in zip(found, places, strict=True):
        assert place in problem


def test_every_one_of_many_bad_rows_is_reported() -> None:
    n = 30_000
    columns: dict[str, list[Any]] = {
        "request_id": list(map(str, range(n))),
        "prompt": ["p"] * n,
        "model": ["m"] * n,
        "score": [9] * n,
    }
    assert len(problems_of(lambda: from_columns(columns))) == n


def test_a_model_column_of_ids_is_refused() -> None:
    n = 40_000
    columns: dict[str, list[Any]] = {
        "request_id": ["a"] * n,
        "prompt": ["p"] * n,
        "model": list(map(str, range(n))),
        "score": [1] * n,
    }
    assert "40000 distinct names" in problems_of(lambda: from_columns(columns))[0]


def test_columns_of_different_length_are_refused() -> None:
    columns: dict[str, list[Any]] = {"request_id": ["a", "b"], "prompt": ["p"], "model": ["m", "m"], "score": [1, 1]}
    assert "differ in length" in problems_of(lambda: from_columns(columns))[0]


def test_arrays_are_columns_too() -> None:
    columns: dict[str, Any] = {name: [value] for name, value in outcome().items()}
    table = from_columns({**columns, "score": np.asarray([0.5]), "input_tokens": np.asarray([7])})
    assert (table.score.tolist(), table.input_tokens.tolist()) == ([0.5], [7.0])


# The table itself


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(5).sample(300, models_per_request=3).table


def test_a_table_of_uneven_columns_cannot_be_made(table: OutcomeTable) -> None:
    fields = {name: getattr(table, name) for name in table.__dataclass_fields__}
    assert "score has 899; expected 900" in problems_of(lambda: OutcomeTable(**fields | {"score": table.score[1:]}))[0]


def test_rows_are_sorted_by_request_then_model(table: OutcomeTable) -> None:
    key = table.request.astype(np.int64) * len(table.models) + table.model
    assert (np.diff(key) > 0).all()


def test_selecting_by_mask_keeps_those_requests_and_all_models(table: OutcomeTable) -> None:
    mask = np.arange(300) % 3 == 0
    part = table.select_requests(mask)
    assert part.models == table.models
    assert part.request_ids == [name for name, kept in zip(table.request_ids, mask, strict=True) if kept]
    np.testing.assert_array_equal(part.dense("score"), table.dense("score")[mask])


def test_selecting_by_index_follows_the_given_order(table: OutcomeTable) -> None:
    part = table.select_requests([7, 2, 250])
    assert part.prompts == [table.prompts[i] for i in (7, 2, 250)]
    np.testing.assert_array_equal(part.dense("latency_s"), table.dense("latency_s")[[7, 2, 250]])


@pytest.mark.parametrize("chosen", [[0, 0], [-1], [300], [0.5], [True, False]])
def test_a_selection_that_makes_no_sense_is_refused(table: OutcomeTable, chosen: list[Any]) -> None:
    assert problems_of(lambda: table.select_requests(chosen))


def test_selecting_nothing_gives_an_empty_table(table: OutcomeTable) -> None:
    assert (table.select_requests([]).n_requests, table.select_requests([]).n_rows) == (0, 0)


def test_dense_refuses_a_column_that_is_not_numeric(table: OutcomeTable) -> None:
    assert "'task' is not a numeric column" in problems_of(lambda: table.dense("task"))[0]


def test_the_parts_of_a_table_concatenate_to_it(table: OutcomeTable) -> None:
    parts = [table.select_requests(np.arange(100)), table.select_requests(np.arange(100, 300))]
    assert OutcomeTable.concat(parts).fingerprint() == table.fingerprint()


def test_concatenating_a_table_with_itself_is_refused(table: OutcomeTable) -> None:
    assert len(problems_of(lambda: OutcomeTable.concat([table, table]))) == table.n_rows


@pytest.mark.parametrize(
    "change",
    [{"score": 0.0}, {"prompt": "Other."}, {"task": "t"}, {"group": "g"}, {"cost_usd": 0.0}, {"model": "n"}],
)
def test_the_fingerprint_sees_every_change(change: dict[str, Any]) -> None:
    def fingerprint(row: dict[str, Any]) -> str:
        return from_columns({name: [value] for name, value in row.items()}).fingerprint()

    assert fingerprint(outcome()) == fingerprint(outcome())
    assert fingerprint(outcome(**{k: v for k, v in change.items() if k != "model"}) | change) != fingerprint(outcome())


# Folds


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(st.integers(0, 40), min_size=2).filter(lambda g: len(set(g)) > 1), data=st.data())
def test_folds_divide_no_group_and_differ_by_at_most_the_largest(groups: list[int], data: st.DataObject) -> None:
    n_folds = data.draw(st.integers(2, len(set(groups))))
    fold = group_folds(groups, n_folds, seed=1)
    for group in set(groups):
        assert len({f for f, g in zip(fold.tolist(), groups, strict=True) if g == group}) == 1
    sizes = np.bincount(fold, minlength=n_folds)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= max(map(groups.count, groups))


def test_folds_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    groups = [f"g{i // 2}" for i in range(400)]
    first, again, other = group_folds(groups, 5, 1), group_folds(groups, 5, 1), group_folds(groups, 5, 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.bincount(first), [80] * 5)


@pytest.mark.parametrize("n_folds", [0, 1, 4])
def test_a_number_of_folds_that_cannot_be_dealt_is_refused(n_folds: int) -> None:
    assert "expected 2..3" in problems_of(lambda: group_folds(["a", "b", "c"], n_folds, 0))[0]
