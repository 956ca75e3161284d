"""The hand-built features: what each group sees, what it must not see, and the bounds."""

from __future__ import annotations

import copy
import re
from math import log1p
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml import features
from router_ml.features import COUNT_LIMIT, FEATURE_NAMES, SAMPLE, WINDOW, extract, extract_many
from router_ml.request import RouteRequest, VerifierSpec, read_trace

LENGTHS = {"n_chars", "n_words", "n_lines", "n_last_chars", "n_last_words", "n_last_lines"}
ODD_TEXT = st.text(st.characters(), min_size=1, max_size=400)  # surrogates and control characters included
MARKS = [
    "Answer:", "Q:", "\n", "\n\n", "A) x", "\nB) y", "(C)", "?", "```", "    ", '{"name": "f", "parameters": {}}', "}",
    '"parameters"', '{"', "7", ".5", "1999", "_", " _ ", "$", "\\", "日本", "\ud800", "\x00", "\u2019", "how many",
    "write",
]  # fmt: skip
PIECES = st.lists(st.sampled_from(MARKS), min_size=1, max_size=60).map("".join)
WEATHER = (
    '[{"name": "get_forecast", "description": "Forecast of a city, e.g. Oslo.", "parameters": {"type": "dict", '
    '"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "scale": {"type": "string", '
    '"enum": ["C", "F"]}}, "required": ["city", "days"]}}]'
)


def row(request: Any, **limits: Any) -> np.ndarray:
    whole = RouteRequest(request, **limits)
    return extract(whole, read_trace(whole))


def seen(request: Any, **limits: Any) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, row(request, **limits).tolist(), strict=True))


def changed(one: Any, other: Any) -> set[str]:
    before, after = seen(one), seen(other)
    return {name for name in FEATURE_NAMES if before[name] != after[name]}


def count(value: float) -> Any:
    return pytest.approx(log1p(value))


def blank_text(text: str) -> bool:
    return not text.strip()


# --- the vector as a whole


def test_names_are_unique_documented_and_say_their_scale() -> None:
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES) == row("Hello there").size
    documented = set(re.findall(r"\b(?:n|share|is|has)_\w+", features.__doc__ or ""))
    assert documented == set(FEATURE_NAMES)


def test_no_word_stands_in_two_groups() -> None:
    words = [word for group in features._GROUPS.values() for word in group.split()]
    assert sorted(words) == sorted(set(words))


def check_bounds(values: np.ndarray) -> None:
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    tops = [log1p(COUNT_LIMIT) if name.startswith("n_") else 1.0 for name in FEATURE_NAMES]
    assert (values <= np.array(tops) + 1e-12).all()
    flags = [i for i, name in enumerate(FEATURE_NAMES) if name.startswith(("is_", "has_"))]
    assert set(values[flags].tolist()) <= {0.0, 1.0}


@settings(deadline=None, max_examples=300)
@given(st.one_of(ODD_TEXT, PIECES), st.booleans())
def test_odd_text_gives_finite_bounded_features(text: str, twice: bool) -> None:
    turns = [{"role": "user", "content": text}] * (2 if twice else 1)
    check_bounds(row([*turns, {"role": "user", "content": "x"}]))
    if not blank_text(text):
        check_bounds(row(text))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 5_000_000, "7" * 5_000_000, "\ud83d" * 50_000, "\n    " * 50_000 + "x", "A:" * 50_000, "Q:\n" * 50_000,
        "\nA) 1\nB) 2" * 50_000, '{"parameters"' * 50_000, "{" * 50_000 + '"parameters"' + "}" * 50_000,
        "x\x00" * 50_000,
    ],
    ids=["letter", "digit", "surrogate", "indent", "label", "question", "options", "open", "nested", "control"],
)  # fmt: skip
def test_extreme_text_gives_finite_bounded_features(text: str) -> None:
    check_bounds(row(text))


def test_enormous_limits_are_capped() -> None:
    assert seen("Hi", max_output_tokens=1e300)["n_max_output_tokens"] == count(COUNT_LIMIT)


def test_same_request_gives_same_features_and_stays_as_it_was() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Fix `f(x)`, it fails on 3.5?"}]}]
    kept = copy.deepcopy(messages)
    request = RouteRequest(messages)
    trace = read_trace(request)
    first = extract(request, trace)
    first_copy = first.copy()
    row("Something else entirely, at 9 o'clock")
    assert (extract(request, trace) == first_copy).all()
    assert (first == first_copy).all()
    assert messages == kept
    assert trace == read_trace(request)


@settings(deadline=None, max_examples=50)
@given(st.lists(PIECES.filter(lambda text: not blank_text(text)), max_size=4))
def test_many_equal_one_by_one(texts: list[str]) -> None:
    requests = [RouteRequest(text) for text in texts]
    rows = extract_many(requests, [read_trace(request) for request in requests])
    assert rows.shape == (len(texts), len(FEATURE_NAMES))
    assert all((rows[i] == row(text)).all() for i, text in enumerate(texts))


def test_requests_and_traces_of_different_number_are_refused() -> None:
    request = RouteRequest("Hi")
    with pytest.raises(ValueError, match=r"shorter|longer"):
        extract_many([request, request], [read_trace(request)])


def test_a_request_without_words_has_features() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    values = row(picture)
    check_bounds(values)
    assert seen(picture)["n_chars"] == 0.0
    assert seen(picture)["n_images"] == count(1)


# --- what must not count


def test_system_prompt_and_tool_schemas_change_nothing() -> None:
    question = {"role": "user", "content": "What is 2+2?"}
    policy = "You must never write JSON. Traceback: how many 1999 errors? ```x``` " * 400  # about 6,000 tokens
    dressed = [
        {"role": "system", "content": policy},
        {"role": "developer", "content": [{"type": "text", "text": policy}]},
        question,
    ]
    assert (row(dressed) == row([question])).all()
    assert (row([question]) == row("What is 2+2?")).all()
    small, large = {"name": "f"}, {"name": "f", "description": policy, "parameters": {"type": "object"}}
    assert (row("What is 2+2?", tools=[small]) == row("What is 2+2?", tools=[large])).all()


def test_words_of_assistant_and_tools_change_nothing() -> None:
    def chat(reply: str, result: str) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": "Book a table"},
            {"role": "assistant", "content": reply},
            {"role": "tool", "content": result},
            {"role": "user", "content": "For two"},
        ]

    assert changed(chat("Sure", "fine"), chat("def f(): return 12 ?" * 50, "1999 {} \\frac" * 50)) == set()


def test_text_between_head_and_tail_changes_only_lengths() -> None:
    head, tail = "List the 3 rivers of Peru. " * 200, " Which one is longest, and why? Answer in JSON:" * 100
    plain = head + "word " * 5_000 + tail
    rich = head + "Q: 1999\n\n```def f(x): return 'é'``` $5 {} " * 5_000 + tail
    assert len(head) > WINDOW < len(tail)
    assert changed(plain, rich) <= LENGTHS
    assert changed(plain, rich)
    assert changed(head + "a" * 40_000 + tail, head + "1\n??" * 10_000 + tail) == set()


def test_words_between_head_and_tail_of_the_sample_change_no_word_count() -> None:
    head, tail = "wall " * (SAMPLE // 5), "door " * (SAMPLE // 5)
    assert "n_negations" not in changed(head + "tall " * 200 + tail, head + "none " * 200 + tail)
    assert "n_negations" in changed("tall " * 200 + tail, "none " * 200 + tail)


# --- length


def test_lengths_of_all_turns_and_of_the_last() -> None:
    got = seen([{"role": "user", "content": "one two\nthree"}, {"role": "user", "content": "four five"}])
    assert got["n_chars"] == count(len("one two\nthree\n\nfour five"))
    assert (got["n_words"], got["n_last_words"]) == (count(5), count(2))
    assert (got["n_lines"], got["n_last_lines"]) == (count(4), count(1))
    assert got["n_last_chars"] == count(9)
    assert (got["n_user_turns"], got["n_assistant_turns"]) == (count(2), 0.0)


def test_length_grows_with_text_beyond_the_window() -> None:
    got = seen("blue sky\n" * 10_000)
    assert got["n_chars"] == count(90_000)
    assert got["n_words"] == pytest.approx(log1p(20_000), abs=0.02)
    assert got["n_lines"] == pytest.approx(log1p(10_000), abs=0.02)


def test_word_shape() -> None:
    got = seen("Notwithstanding red red red. Blue.")
    assert got["n_letters_per_word"] == count(28 / 5)
    assert got["n_words_per_sentence"] == count(5 / 2)
    assert got["n_distinct_words"] == count(3)
    assert got["share_distinct_words"] == pytest.approx(3 / 5)
    assert got["share_long_words"] == pytest.approx(1 / 5)


# --- few-shot, schema


def test_the_ask_begins_after_the_last_demonstration() -> None:
    shots = "What floats?\nA) ice\nB) iron\nAnswer:\nA\n\nWhat sinks?\nA) ice\nB) iron\nAnswer:\nB\n\n"
    last = "What burns at 451 degrees?\nA) paper\nB) iron\nC) sand\nAnswer:"
    got = seen(shots + last)
    assert got["n_demonstrations"] == count(2)
    assert got["share_before_ask"] == pytest.approx((len(shots) - 2) / len(shots + last))
    assert got["n_options"] == count(3)
    assert got["n_numbers"] == count(1)
    assert got["n_question_marks"] == count(1)


@pytest.mark.parametrize(
    ("text", "demonstrations"),
    [
        ("Q: 1+1?\nA: 2\nQ: 2+2?\nA: 4\nQ: 3+3?\nA:", 2),
        ("Q: Who?\nShe did.\nQ: When?\nMonday.\nQ: Where?", 2),
        ("Question 1: Who?\nQuestion 2: When?", 1),
        ("Review: fine\nMood: good\nReview: poor\nMood:", 1),
        ("Translate the following:", 0),
        ("We saw the following: x. Explain the following:", 0),
        ("Q: Who wrote it?", 0),
        ("Answer:", 0),
    ],
)
def test_demonstrations_are_counted(text: str, demonstrations: int) -> None:
    assert seen(text)["n_demonstrations"] == count(demonstrations)


def test_written_schema_is_described_and_left_out_of_the_ask() -> None:
    ask = "How cold will Oslo be over 3 days?\n\nAvailable functions:\n"
    got = seen(ask + WEATHER)
    assert (got["n_functions"], got["n_parameters"], got["n_number_parameters"]) == (count(1), count(3), count(1))
    assert (got["n_required"], got["n_enums"], got["n_format_hints"]) == (count(2), count(1), count(1))
    assert got["n_schema_levels"] == count(4)
    assert got["share_schema"] == pytest.approx((len(WEATHER) - 2) / len(ask + WEATHER))
    assert (got["n_quotes"], got["n_numbers"]) == (0.0, count(1))
    assert seen(ask)["n_functions"] == seen(ask)["share_schema"] == 0.0


def test_a_request_that_a_function_fits_shares_words_with_the_schema() -> None:
    fits = seen("Forecast for the city of Oslo\n" + WEATHER)["share_ask_in_schema"]
    misses = seen("Compose a waltz for two violins\n" + WEATHER)["share_ask_in_schema"]
    assert misses < fits <= 1.0


# --- code, mathematics, language


def test_code_is_seen() -> None:
    code = (
        "Fix it:\n```python\ndef area(r):\n    if r > 0:\n        return math.pi * my_power(r, 2);\n```\n"
        ">>> area(2)\nSee src/area.py"
    )
    got = seen(code)
    assert got["n_fences"] == count(2)
    assert got["n_prompts"] == count(1)
    assert got["n_calls"] == count(3)
    assert got["n_snake_case"] == count(1)
    assert got["n_dotted_names"] == count(2)
    assert got["n_paths"] == count(1)
    assert got["n_code_lines"] == count(1)
    assert (got["n_indented_lines"], got["n_indent_levels"]) == (count(2), count(2))
    assert got["n_conditions"] == count(1)
    assert got["share_brackets"] > 0 < got["share_operators"]
    assert seen("Call `areaOf` or `size`")["n_inline_code"] == count(2)
    assert seen("Call `areaOf`")["n_camel_case"] == count(1)
    assert seen("<b>x</b>")["n_tags"] == count(1)


def test_code_features_are_zero_for_prose() -> None:
    got = seen("The old bridge closed on a rainy day, and nobody minded.")
    names = (
        "n_fences",
        "n_calls",
        "n_snake_case",
        "n_camel_case",
        "n_indented_lines",
        "n_code_words",
        "has_stack_trace",
    )
    assert all(got[name] == 0.0 for name in names)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('It fails with an error:\nTraceback (most recent call last):\n  File "a.py"', 1.0),
        ("Crash\n\tat org.shop.Cart.add(Cart.java:9)\n", 1.0),
        ("Crash\n    at addItem (cart.js:9:1)\n", 1.0),
        ("Meet me\n    at the bridge\n", 0.0),
    ],
)
def test_stack_traces_are_seen(text: str, found: float) -> None:
    assert seen(text)["has_stack_trace"] == found


def test_mathematics_is_seen() -> None:
    got = seen(r"Solve \frac{x}{2} + 3.25 = -14^2 for $x$ given 5% of 1200000, $7 and 3*4")
    assert got["n_latex_commands"] == count(1)
    assert got["n_dollar_signs"] == count(3)
    assert got["n_money"] == count(1)
    assert got["n_percent"] == count(1)
    assert got["n_decimals"] == count(1)
    assert got["n_negative_numbers"] == count(1)
    assert got["n_superscripts"] == count(1)
    assert got["n_equals"] == count(1)
    assert got["n_plus_signs"] == count(1)
    assert got["n_longest_number"] == count(7)
    assert got["n_numbers"] == count(10)
    assert got["n_solve"] == count(1)
    assert got["n_arithmetic"] > 0 < got["share_digits"]


def test_mathematics_and_unit_words_are_counted() -> None:
    got = seen("The ratio of two integers; the triangle is three km wide and twice as many feet high.")
    assert got["n_math_words"] == count(3)
    assert got["n_unit_words"] == count(2)
    assert got["n_number_words"] == count(3)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("déjà vu à Genève", "share_accents"),
        ("Который час?", "share_greek_cyrillic"),
        ("Πόσο κοστίζει;", "share_greek_cyrillic"),
        ("كم الساعة الآن؟", "share_hebrew_arabic"),
        ("מה השעה", "share_hebrew_arabic"),
        ("现在几点了", "share_cjk"),
        ("今何時ですか", "share_cjk"),
        ("지금 몇 시예요", "share_cjk"),
        ("∑ x ≤ 3 → ½", "share_symbols"),
        ("🙂 🚀", "share_other_scripts"),
        ("क्या समय हुआ", "share_other_scripts"),
    ],
)
def test_scripts_are_told_apart(text: str, feature: str) -> None:
    got = seen(text)
    scripts = [name for name in FEATURE_NAMES if name.startswith("share_") and name in SCRIPTS]
    assert max(scripts, key=got.__getitem__) == feature
    assert 0 < got[feature] <= got["share_non_ascii"]


SCRIPTS = {
    "share_accents",
    "share_greek_cyrillic",
    "share_hebrew_arabic",
    "share_cjk",
    "share_symbols",
    "share_other_scripts",
}


def test_shares_of_characters_do_not_count_bytes() -> None:
    assert seen("现在几点了")["share_cjk"] == pytest.approx(5 / 6)  # the end of the line is the sixth
    assert seen("现在几点了")["n_chars"] == seen("现在几点了")["n_ask_chars"] == count(5)


def test_english_shows_in_function_words() -> None:
    assert seen("It was on the table there")["share_function_words"] == pytest.approx(5 / 6)
    assert seen("Das Haus am Fluss steht leer")["share_function_words"] == 0.0
    assert seen("They saw us")["share_pronouns"] == pytest.approx(2 / 3)


# --- form of the question


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Who wrote it?", "is_who"),
        ("It rained. What then?", "is_what"),
        ("And when?", "is_when"),
        ("Tell me: where is it?", "is_where"),
        ("Why not?", "is_why"),
        ("How does it fly?", "is_how"),
        ("In which city?", "is_which"),
        ("How many legs has it?", "is_how_many"),
        ("At how much per day?", "is_how_many"),
    ],
)
def test_the_question_word_is_found(text: str, kind: str) -> None:
    kinds = [name for name in FEATURE_NAMES if name in KINDS]
    got = seen(text)
    assert [name for name in kinds if got[name]] == [kind]


KINDS = {"is_who", "is_what", "is_when", "is_where", "is_why", "is_how", "is_which", "is_how_many"}


def test_the_last_question_counts() -> None:
    text = "Who came? She asked. How far is the inn? Thanks."
    got = seen(text)
    assert got["is_how"] == 1.0
    assert got["is_who"] == 0.0
    assert got["n_question_marks"] == count(2)
    assert got["n_question_words"] == count(5)
    assert got["share_before_question"] == pytest.approx(text.rindex("?") / len(text))
    assert (got["is_starting_with_wh"], got["is_yes_no"]) == (1.0, 0.0)


def test_yes_no_questions_and_gaps() -> None:
    assert seen("Is it raining?")["is_yes_no"] == 1.0
    assert seen("It is raining.")["is_yes_no"] == 0.0
    assert seen("The _ was too small for the shelf")["has_blank"] == 1.0
    assert seen("Water boils at ____.")["has_blank"] == 1.0
    assert seen("Rename my_var here")["has_blank"] == 0.0


@pytest.mark.parametrize("text", ["Write a song", "Could you please summarise this", "please translate it"])
def test_instructions_are_seen(text: str) -> None:
    assert seen(text)["is_imperative"] == 1.0


@pytest.mark.parametrize("text", ["The letter arrived", "Please be quiet", "They write songs"])
def test_statements_are_no_instructions(text: str) -> None:
    assert seen(text)["is_imperative"] == 0.0


@pytest.mark.parametrize(
    ("word", "feature"),
    [
        ("create", "n_create"), ("explain", "n_explain"), ("summarise", "n_summarise"), ("translate", "n_translate"),
        ("extract", "n_extract"), ("classify", "n_classify"), ("debug", "n_repair"), ("prove", "n_solve"),
        ("compare", "n_compare"), ("list", "n_list"), ("plan", "n_plan"), ("rewrite", "n_rewrite"),
        ("whose", "n_wh_words"), ("don't", "n_negations"), ("don\u2019t", "n_negations"), ("otherwise", "n_conditions"),
        ("while", "n_loops"), ("because", "n_connectives"), ("also", "n_conjunctions"), ("largest", "n_comparatives"),
        ("every", "n_quantifiers"), ("exactly", "n_constraints"), ("JSON", "n_formats"), ("pages", "n_length_limits"),
        ("options", "n_choice_words"), ("step", "n_reasoning_words"), ("import", "n_code_words"),
        ("Python", "n_software_words"), ("crashes", "n_error_words"), ("Tuesday", "n_calendar_words"),
        ("poem", "n_prose_words"), ("perhaps", "n_hedges"), ("ASAP", "n_urgency"), ("thanks", "n_courtesy"),
    ],
)  # fmt: skip
def test_word_groups_are_counted(word: str, feature: str) -> None:
    assert seen(f"Grey stone {word}, brick {word}!")[feature] == count(2)
    assert seen("Grey stone, brick!")[feature] == 0.0


# --- choices, lists, names, ending


@pytest.mark.parametrize(
    "text",
    ["Pick one.\nA) 12\nB) 3,400\nC) $7", "Pick one.\nA. 12\nB. 3,400\nC. $7", "Pick one. (A) 12 (B) 3,400 (C) $7",
     "A) old\nB) list\nC) of\nD) four\nPick one.\n(A) 12\n(B) 3,400\n(C) $7"],
)  # fmt: skip
def test_options_are_counted_and_measured(text: str) -> None:
    got = seen(text)
    assert got["n_options"] == count(3)
    assert got["share_numeric_options"] == 1.0
    assert 0 < got["share_shortest_option"] < 1
    assert got["n_stem_chars"] < got["n_ask_chars"]


def test_option_shape() -> None:
    got = seen("Pick one.\nA) red\nB) orange")
    assert got["n_option_chars"] == count(4.5)
    assert got["share_shortest_option"] == pytest.approx(0.5)
    assert got["share_numeric_options"] == 0.0
    assert got["n_stem_chars"] == count(len("\nPick one."))


@pytest.mark.parametrize("text", ["A. Smith wrote it.\nSee page 9", "B) late\nC) later", "Vitamin C (A) is one"])
def test_letters_that_are_no_options(text: str) -> None:
    assert seen(text)["n_options"] == 0.0


def test_lists_and_headings() -> None:
    got = seen("# Shopping\n- milk\n- bread\n\n1. pay\n2. leave")
    assert (got["n_headings"], got["n_bullets"], got["n_numbered_lines"]) == (count(1), count(2), count(2))
    assert got["n_paragraphs"] == count(1)


def test_named_things() -> None:
    got = seen('In 1987 Maria met "Ana" in Porto. Then mail ana@example.org, see https://example.org.')
    assert got["share_capitalised"] == pytest.approx(2 / 11)
    assert got["n_years"] == count(1)
    assert got["n_quotes"] == count(1)
    assert got["n_emails"] == count(1)
    assert got["n_urls"] == count(1)
    assert got["n_commas"] == count(1)


def test_ending() -> None:
    assert seen("Complete this: ")["is_ending_with_colon"] == 1.0
    assert seen("Ready?\n")["is_ending_with_question"] == 1.0
    assert seen("Add 1234")["share_digits_at_end"] == pytest.approx(0.5)


# --- trace and limits


def test_conversation_counts() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    got = seen(
        [
            {"role": "user", "content": "Run the tests"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "Error: no such file"},
            {"role": "tool", "content": "3 passed"},
            {"role": "user", "content": [{"type": "document"}, {"type": "input_audio"}, {"type": "video"}]},
        ],
        tools=[{"name": "f"}, {"name": "g"}, {"name": "h"}],
    )
    assert (got["n_user_turns"], got["n_assistant_turns"]) == (count(2), count(1))
    assert (got["n_tool_calls"], got["n_tool_calls_per_turn"]) == (count(2), count(2))
    assert got["n_failed_tool_calls"] == count(1)
    assert got["share_failed_tool_calls"] == 0.5
    assert got["n_tools_offered"] == count(3)
    assert (got["n_pdfs"], got["n_videos"], got["n_audios"], got["n_images"]) == (count(1), count(1), count(1), 0.0)


def test_limits_supervision_and_verifier() -> None:
    none = seen("Hi")
    assert not any(none[name] for name in ("has_output_limit", "is_supervised", "is_unsupervised", "has_verifier"))
    got = seen("Hi", max_output_tokens=256, supervised=True, verifier=VerifierSpec())
    assert (got["n_max_output_tokens"], got["has_output_limit"]) == (count(256), 1.0)
    assert (got["is_supervised"], got["is_unsupervised"], got["has_verifier"]) == (1.0, 0.0, 1.0)
    assert seen("Hi", supervised=False)["is_unsupervised"] == 1.0
