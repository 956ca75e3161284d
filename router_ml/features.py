"""Request -> hand-built features: numbers that say what kind of work the user asks for.

Only the user's own words and the trace count. System prompts, tool schemas and ``input_tokens`` never enter, so a long
system prompt does not make an easy question look hard. Everything is pure and bounded: of a text longer than
``2 * WINDOW`` characters only head and tail are read, and words are counted in head and tail of that (``2 * SAMPLE``
bytes); what lies between changes nothing but the length features.

Three parts of the text are told apart first, because they mean different things:

- *demonstrations*: worked examples before the question. A text that ends with a label (``Answer:``) which it has used
  before is few-shot (Brown et al. 2020, arXiv 2005.14165); so is one with several lines that open with ``Q:``;
- *written schema*: function schemas pasted into the text as JSON;
- *the ask*: the rest. Unless said otherwise a feature describes the ask.

The prefix of a name says its scale: ``n_`` is log(1 + count), at most log(1 + 10^7); ``share_`` lies in [0, 1];
``is_`` and ``has_`` are 0 or 1.

============  =======================================================================================================
group         features
============  =======================================================================================================
length        of all user text n_chars, n_words, n_lines; of the last user turn n_last_chars, n_last_words,
              n_last_lines; n_ask_chars, n_ask_words, n_letters_per_word, n_words_per_sentence, n_chars_per_line,
              n_distinct_words, share_distinct_words, share_long_words (8 letters and more)
few-shot      n_demonstrations, share_before_ask (where the ask begins in the text)
schema        n_functions, n_parameters, n_number_parameters, n_required, n_enums, n_format_hints (``format``,
              ``e.g.``), n_schema_levels, share_schema; share_ask_in_schema: words of the ask that the schema holds too,
              low where no function fits
code          n_calls ``f(``, n_snake_case, n_camel_case, n_dotted_names ``a.b``, n_paths ``/a``, n_code_lines (that end
              in ``;`` or a bracket), n_indented_lines, n_indent_levels, n_fences, n_inline_code, n_prompts ``>>>``,
              n_tags ``</``, n_parentheses, n_brackets, share_brackets, share_operators, has_stack_trace
mathematics   n_numbers, n_longest_number (digits), n_decimals, n_negative_numbers, n_percent, n_money, n_arithmetic
              (operator beside a digit), n_latex_commands, n_dollar_signs, n_superscripts ``^``, n_equals,
              n_plus_signs, n_dashes, share_digits
language      share_non_ascii, share_accents (Latin beyond ASCII), share_greek_cyrillic, share_hebrew_arabic, share_cjk,
              share_symbols (typographic, mathematical), share_other_scripts (and emoji), share_upper,
              share_function_words and share_pronouns (English)
question      n_question_marks; of the last question n_question_words, share_before_question (its place), is_who,
              is_what, is_when, is_where, is_why, is_how, is_which, is_how_many (its first question word), is_yes_no;
              is_starting_with_wh, has_blank (a gap to fill in)
choices       n_stem_chars (before the options), n_options (``A)``, ``B.`` or ``(C)``), n_option_chars (mean),
              share_shortest_option (of the longest), share_numeric_options; n_bullets, n_numbered_lines,
              n_headings, n_paragraphs
verbs         is_imperative (opens with an instruction verb), n_create, n_explain, n_summarise, n_translate, n_extract,
              n_classify, n_repair, n_solve, n_compare, n_list, n_plan, n_rewrite
words         n_wh_words, n_negations, n_conditions (if, else), n_loops (for, while), n_connectives (because, thus),
              n_conjunctions (and, also), n_comparatives, n_quantifiers, n_constraints (must, exactly), n_formats
              (json, table), n_length_limits (words, paragraphs), n_choice_words, n_reasoning_words, n_math_words,
              n_unit_words, n_number_words, n_code_words, n_software_words, n_error_words, n_calendar_words,
              n_prose_words (poem, essay), n_hedges, n_urgency, n_courtesy
things        share_capitalised (of the spaces, those before a capital that opens no sentence), n_quotes,
              n_apostrophes, n_commas, n_urls, n_emails, n_years
ending        is_ending_with_colon, is_ending_with_question, share_digits_at_end (of the last 200 bytes)
trace         n_user_turns, n_assistant_turns, n_tool_calls, n_tool_calls_per_turn, n_failed_tool_calls,
              share_failed_tool_calls, n_tools_offered, n_images, n_pdfs, n_videos, n_audios, n_max_output_tokens (0 if
              no limit), has_output_limit, is_supervised, is_unsupervised (both 0 if unknown), has_verifier
============  =======================================================================================================

The word lists are English; elsewhere they count 0, and the ``share_`` features of the language tell why.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router_ml.request import RouteRequest, Trace

WINDOW = 3_000  # characters read at each end of the user's text
SAMPLE = 1_500  # bytes at each end of the ask in which words are counted
COUNT_LIMIT = 1e7  # counts above it are read as it
_SCHEMA_SAMPLE = 3_000  # bytes of a written schema whose words are compared with the ask
_SENTENCE_BYTES = 400  # before a question mark, in which its sentence is looked for

# Classes of UTF-8 bytes. Lead bytes tell the script (Unicode 15, table 3-6), so scripts are counted without decoding.
_MEMBERS: tuple[bytes, ...] = (
    b"", b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789", b" ", b"\n", b"\t", b".", b",",
    b";", b":", b"?", b"!", b'"', b"'", b"`", b"(", b")", b"[{", b"]}", b"+", b"-", b"_", b"/", b"\\", b"$", b"%", b"=",
    b"*<>|&~", b"^", b"#", b"@", bytes(range(0x80, 0xC0)), bytes(range(0xC3, 0xCD)), bytes(range(0xCD, 0xD6)),
    bytes(range(0xD6, 0xE0)), bytes(range(0xE3, 0xEE)), b"\xc2\xe2", b"\xe0\xe1" + bytes(range(0xEE, 0xF5)),
)  # fmt: skip
(
    _OTHER, _LOWER, _UPPER, _DIGIT, _SPACE, _NEWLINE, _TAB, _DOT, _COMMA,
    _SEMICOLON, _COLON, _QUESTION, _BANG, _QUOTE, _APOSTROPHE, _TICK, _PAREN, _PAREN_END, _OPEN, _CLOSE, _PLUS, _DASH,
    _UNDERSCORE, _SLASH, _BACKSLASH, _DOLLAR, _PERCENT, _EQUALS, _OPERATOR, _CARET, _HASH, _AT, _CONTINUATION, _LATIN,
    _GREEK, _HEBREW, _CJK, _SYMBOL, _FAR,
) = range(len(_MEMBERS))  # fmt: skip
_N_CLASSES = len(_MEMBERS)
_ROW = np.uint16(_N_CLASSES)
_CLASS_OF = bytes(next((i for i, members in enumerate(_MEMBERS) if byte in members), _OTHER) for byte in range(256))
_EIGHT_LETTERS = bytes([_LOWER]) * 8

# Features that are counts of neighbouring classes: all of them come from one histogram of class pairs.
_PAIRS: dict[str, tuple[tuple[int, int], ...]] = {
    "n_calls": ((_LOWER, _PAREN), (_UNDERSCORE, _PAREN)),
    "n_snake_case": ((_LOWER, _UNDERSCORE),),
    "n_camel_case": ((_LOWER, _UPPER),),
    "n_dotted_names": ((_DOT, _LOWER),),
    "n_paths": ((_SLASH, _LOWER), (_SLASH, _UPPER)),
    "n_code_lines": ((_SEMICOLON, _NEWLINE), (_OPEN, _NEWLINE), (_CLOSE, _NEWLINE), (_PAREN, _NEWLINE)),
    "n_indented_lines": ((_NEWLINE, _SPACE), (_NEWLINE, _TAB)),
    "n_tags": ((_OPERATOR, _SLASH),),
    "n_decimals": ((_DOT, _DIGIT),),
    "n_negative_numbers": ((_DASH, _DIGIT),),
    "n_percent": ((_DIGIT, _PERCENT),),
    "n_money": ((_DOLLAR, _DIGIT),),
    "n_arithmetic": (
        (_DIGIT, _PLUS),
        (_SPACE, _PLUS),
        (_DIGIT, _OPERATOR),
        (_OPERATOR, _DIGIT),
        (_SPACE, _OPERATOR),
        (_DIGIT, _DASH),
        (_DIGIT, _SLASH),
        (_DIGIT, _CARET),
    ),
    "n_latex_commands": ((_BACKSLASH, _LOWER),),
    "n_bullets": ((_NEWLINE, _DASH), (_NEWLINE, _OPERATOR), (_NEWLINE, _SYMBOL)),
    "n_numbered_lines": ((_NEWLINE, _DIGIT),),
    "n_headings": ((_NEWLINE, _HASH),),
    "n_paragraphs": ((_NEWLINE, _NEWLINE),),
    "n_urls": ((_COLON, _SLASH),),
    "n_emails": ((_LOWER, _AT), (_DIGIT, _AT)),
}
_INDENTED = list(_PAIRS).index("n_indented_lines")
# Counts that features are made of: digits after digits, capitals after spaces, sentence ends inside and at the end of a
# line, operators in a row, the start and the end of a gap.
_BUILDING_PAIRS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((_DIGIT, _DIGIT),),
    ((_SPACE, _UPPER),),
    ((_DOT, _SPACE), (_BANG, _SPACE), (_QUESTION, _SPACE)),
    ((_DOT, _NEWLINE), (_BANG, _NEWLINE), (_QUESTION, _NEWLINE)),
    ((_OPERATOR, _OPERATOR),),
    ((_SPACE, _UNDERSCORE), (_NEWLINE, _UNDERSCORE)),
    ((_UNDERSCORE, _SPACE), (_UNDERSCORE, _DOT), (_UNDERSCORE, _COMMA), (_UNDERSCORE, _NEWLINE)),
)
_SUMS = (*_PAIRS.values(), *_BUILDING_PAIRS)
_SUM_CODES = np.array([first * _N_CLASSES + second for pairs in _SUMS for first, second in pairs])
_SUM_STARTS = np.cumsum([0, *map(len, _SUMS[:-1])])

# Word groups; a word stands in one group only. The verbs come first, so that a group number tells a verb.
_GROUPS: dict[str, str] = {
    "create": "write create generate compose draft design build develop implement make produce invent craft add",
    "explain": "explain describe discuss elaborate clarify tell teach interpret define analyze analyse understand",
    "summarise": "summarize summarise summary condense tldr shorten brief outline abstract",
    "translate": "translate translation translated spanish french german english chinese japanese italian portuguese",
    "extract": "extract find identify locate parse retrieve get fetch search detect gather collect scrape lookup",
    "classify": "classify categorize categorise label sentiment tag rate score rank judge grade predict determine",
    "repair": "fix debug repair correct refactor optimize optimise improve resolve patch review test",
    "solve": "solve calculate compute prove evaluate simplify derive estimate integrate differentiate factor convert",
    "compare": "compare contrast versus vs differences similarities distinguish pros cons tradeoffs advantages",
    "list": "list enumerate name suggest recommend ideas examples brainstorm give provide show",
    "plan": "plan schedule organize organise prepare strategy roadmap itinerary steps agenda budget",
    "rewrite": "rewrite rephrase paraphrase edit proofread revise reword polish replace change update modify",
    "wh_words": "who what when where why how which whose whom whats whos hows",
    "negations": "not no never none nor neither cannot cant dont doesnt didnt isnt arent wasnt werent wont wouldnt "
    "shouldnt couldnt hasnt havent nothing except without unable instead lacks false incorrect",
    "conditions": "if elif else unless otherwise whether",
    "loops": "for while until",
    "connectives": "then therefore because since thus hence so although though however whereas given suppose "
    "assume assuming let implies consequently due",
    "conjunctions": "and or also plus additionally furthermore moreover after before finally next along but",
    "comparatives": "more less most least best worst better worse greater smaller larger largest smallest higher "
    "highest lower lowest longer longest shorter shortest faster fastest maximum minimum max min than between same "
    "different",
    "quantifiers": "all every each any some many much few several both either total entire whole half per",
    "constraints": "must should need needs required require requires exactly only strictly always ensure limit avoid "
    "allowed specific precise constraint constraints valid guarantee satisfy",
    "formats": "json xml csv yaml html markdown table format formatted bullet bullets schema latex template column "
    "columns",
    "length_limits": "words word sentences sentence paragraph paragraphs characters pages page lines tokens",
    "choice_words": "answer answers option options choice choices choose select following statement statements true "
    "letter question questions correctly likely multiple",
    "reasoning_words": "step reason reasoning think carefully logic logical puzzle deduce infer conclude conclusion "
    "argument premise cause effect consider",
    "math_words": "sum product difference ratio equation equations integral derivative matrix probability prime "
    "triangle angle area radius circle polynomial root roots square cube fraction percentage average mean median "
    "modulo divisible integer integers factorial sin cos tan vector algebra geometry digits remainder theorem proof "
    "sequence perimeter volume distance speed real positive graph set coordinates",
    "unit_words": "km m cm mm kg g mg lb lbs ft feet inch inches mile miles mph hour hours minute minutes second "
    "seconds meters metres liters litres dollar dollars cents usd eur percent degrees celsius volts watts joules mol "
    "atm hz gb mb",
    "number_words": "zero one two three four five six seven eight nine ten twelve twenty fifty hundred thousand "
    "million billion dozen twice thrice double triple quarter third first",
    "code_words": "def class import function return const var public static void printf print struct int "
    "str string bool boolean float async await lambda try catch throw null nullptr self end array dict tuple args "
    "kwargs len range append loop variable method object",
    "software_words": "python javascript java typescript sql bash linux docker git api server database css regex "
    "react django numpy pandas code script program algorithm compile library package module version app software "
    "query file",
    "error_words": "error errors exception traceback fails failed failing failure crash crashes bug stack warning "
    "raises raised unexpected expected actual behavior behaviour reproduce issue broken wrong",
    "calendar_words": "january february march april june july august september october november december monday "
    "tuesday wednesday thursday friday saturday sunday today tomorrow yesterday year years month months week weeks "
    "day days date",
    "prose_words": "story poem essay song blog email letters article joke post speech novel character dialogue "
    "lyrics marketing tweet headline slogan resume",
    "hedges": "maybe perhaps possibly might may probably approximately about roughly seem seems could guess unsure",
    "urgency": "urgent urgently asap immediately quickly now hurry deadline",
    "courtesy": "please thanks thank kindly help sorry hi hello hey",
    "pronouns": "i me my mine you your yours he him his she her hers we us our ours they them their theirs im ive "
    "youre",
    "function_words": "a an the of to in on at with from by as is are was were be been being has have had do "
    "does did this that these those it its there here will would can shall into up out over under such very just like",
}  # fmt: skip
_GROUP_OF = {word.encode(): i for i, words in enumerate(_GROUPS.values(), 1) for word in words.split()}
_N_VERB_GROUPS = list(_GROUPS).index("wh_words")
_ERRORS = list(_GROUPS).index("error_words") + 1
_VERBS = frozenset(range(1, _N_VERB_GROUPS + 1))
_IN_NO_GROUP = repeat(0)
_WORD_BYTES = bytes(
    byte + 32 if 65 <= byte <= 90 else byte if 97 <= byte <= 122 or 48 <= byte <= 57 or byte >= 0x80 else 32
    for byte in range(256)
)
_NO_BRACES = bytes(byte for byte in range(256) if byte not in b"{}")
_DIGIT_BYTES = bytes(byte if 48 <= byte <= 57 else 32 for byte in range(256))

_WH = {word: i for i, word in enumerate((b"who", b"what", b"when", b"where", b"why", b"how", b"which"))}
_HOW_MANY = len(_WH)
_AUXILIARIES = frozenset(
    b"is are was were am do does did can could will would should shall may might has have had isnt arent doesnt".split()
)
_OPENERS = frozenset(b"please can could would you kindly help i now".split())
_QUESTION_LABEL = re.compile(rb"\n(Q|Question)(?: ?\d{1,3})?:")
_LINE_OPTION = re.compile(rb"\n[ \t]*\(?([A-J])[).:][ \t]*([^\n]*)")
_INLINE_OPTION = re.compile(rb"\(([A-J])\)[ \t]*([^(\n]*)")
_JSON_OBJECT = re.compile(rb'\{\s*"')
_FRAME = re.compile(rb"\n[ \t]+at [\w.$]+ ?\(")  # of a Java or JavaScript stack trace
_REQUIRED = re.compile(rb'"required":\s*\[([^\]]+)')

_SIZE = (
    "n_chars", "n_words", "n_lines", "n_last_chars", "n_last_words", "n_last_lines", "n_ask_chars", "n_ask_words",
    "n_letters_per_word", "n_words_per_sentence", "n_chars_per_line", "n_distinct_words", "share_distinct_words",
    "share_long_words", "n_demonstrations", "share_before_ask",
)  # fmt: skip
_SCHEMA = (
    "n_functions", "n_parameters", "n_number_parameters", "n_required", "n_enums", "n_format_hints", "n_schema_levels",
    "share_schema", "share_ask_in_schema",
)  # fmt: skip
_CHARACTERS = (
    "n_dollar_signs", "n_superscripts", "n_equals", "n_question_marks", "n_quotes", "n_apostrophes", "n_commas",
    "n_plus_signs", "n_dashes", "n_parentheses", "n_brackets", "n_numbers", "share_digits", "share_upper",
    "share_brackets", "share_operators", "share_non_ascii", "share_accents", "share_greek_cyrillic",
    "share_hebrew_arabic", "share_cjk", "share_symbols", "share_other_scripts", "share_capitalised",
    "share_function_words", "share_pronouns", "has_blank", "n_longest_number", "n_years",
)  # fmt: skip
_MARKS = ("n_fences", "n_inline_code", "n_prompts", "n_indent_levels", "has_stack_trace")
_QUESTIONS = (
    "n_question_words", "share_before_question", "is_who", "is_what", "is_when", "is_where", "is_why", "is_how",
    "is_which", "is_how_many", "is_yes_no", "is_starting_with_wh", "is_imperative",
)  # fmt: skip
_OPTIONS = ("n_stem_chars", "n_options", "n_option_chars", "share_shortest_option", "share_numeric_options")
_ENDING = ("is_ending_with_colon", "is_ending_with_question", "share_digits_at_end")
_TRACE = (
    "n_user_turns", "n_assistant_turns", "n_tool_calls", "n_tool_calls_per_turn", "n_failed_tool_calls",
    "share_failed_tool_calls", "n_tools_offered", "n_images", "n_pdfs", "n_videos", "n_audios", "n_max_output_tokens",
    "has_output_limit", "is_supervised", "is_unsupervised", "has_verifier",
)  # fmt: skip

FEATURE_NAMES: tuple[str, ...] = (
    *_SIZE, *_SCHEMA, *_PAIRS, *(f"n_{group}" for group in _GROUPS if group not in ("pronouns", "function_words")),
    *_CHARACTERS, *_MARKS, *_QUESTIONS, *_OPTIONS, *_ENDING, *_TRACE,
)  # fmt: skip
_NO_SCHEMA = (0.0,) * len(_SCHEMA)
_NO_QUESTION = (0.0,) * (len(_QUESTIONS) - 2)
_IS_COUNT = np.array([name.startswith("n_") for name in FEATURE_NAMES])
_LIMITS = np.where(_IS_COUNT, COUNT_LIMIT, 1.0)
_PACK = struct.Struct(f"{len(FEATURE_NAMES)}d").pack  # half the time of np.array() for a tuple of mixed numbers


def extract(request: RouteRequest, trace: Trace) -> npt.NDArray[np.float64]:
    """The features of one request.

    :param request: only its limits, supervision and verifier are read; never its messages or tool schemas.
    :param trace: what ``read_trace(request)`` found.
    :return: float64 (len(FEATURE_NAMES),), finite, each within the bounds that its prefix states.
    """
    return _scaled(np.frombuffer(_counted(request, trace)))


def extract_many(requests: Iterable[RouteRequest], traces: Sequence[Trace]) -> npt.NDArray[np.float64]:
    """The features of many requests, row by row equal to ``extract``.

    :param traces: one per request, in the same order.
    :return: float64 (len(traces), len(FEATURE_NAMES)).
    """
    rows = b"".join([_counted(request, trace) for request, trace in zip(requests, traces, strict=True)])
    return _scaled(np.frombuffer(rows).reshape(len(traces), len(FEATURE_NAMES)))


def _scaled(counted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows of counts, shares and flags, each in its bounds, counts as log(1 + count)."""
    rows = np.minimum(counted, _LIMITS)
    return np.log1p(rows, out=rows, where=_IS_COUNT)


def _counted(request: RouteRequest, trace: Trace) -> bytes:
    """The features of one request before bounds and logarithm, as packed float64."""
    data = _window(trace.user_text)
    parts = _divide(data)
    ask = parts.ask
    lines = b"\n" + ask + b"\n"  # so that the first and the last line have their ends like any other
    classes = lines.translate(_CLASS_OF)
    count, pair_counts = _class_counts(classes)
    words, hits, groups = _words(ask, count)
    *pairs, digit_pairs, capitals, inner_ends, line_ends, operator_pairs, gap_starts, gap_ends = pair_counts
    numbers = count[_DIGIT] - digit_pairs
    return _PACK(
        *_size(trace, data, parts, classes, count, words, inner_ends + line_ends),
        *_schema(parts.schema, words, len(data)),
        *pairs,
        *groups[1:-2],
        *_characters(count, groups, len(words), numbers, capitals - inner_ends),
        float(gap_starts > 0 and gap_ends > 0),
        *(_numbers(ask) if numbers else (0.0, 0.0)),
        *_marks(lines, count, operator_pairs, pairs[_INDENTED], groups[_ERRORS]),
        *_question(ask, words, hits, count[_QUESTION]),
        *_options(lines, count),
        *_ending(data),
        *_conversation(request, trace),
    )


class _Parts(NamedTuple):
    ask: bytes
    schema: bytes
    demonstrations: int
    before_ask: int  # bytes


def _window(text: str) -> bytes:
    if len(text) > 2 * WINDOW:
        text = f"{text[:WINDOW]}\n\n{text[-WINDOW:]}"
    # a lone surrogate has no UTF-8 form; surrogatepass writes it as three bytes that count as one character
    return text.encode("utf-8", "surrogatepass") or b" "


def _sample(data: bytes) -> bytes:
    return data if len(data) <= 2 * SAMPLE else data[:SAMPLE] + b"\n" + data[-SAMPLE:]


def _divide(data: bytes) -> _Parts:
    """Tell demonstrations and written schema from the ask."""
    schema = b""
    if b'"parameters"' in data:
        found = _JSON_OBJECT.search(data)
        end = data.rfind(b"}") + 1
        if found and found.start() < end:
            start = found.start()
            data, schema = data[:start] + data[end:], data[start:end]
    demonstrations, start = _demonstrations(data)
    return _Parts(data[start:] or b" ", schema, demonstrations, start)


def _demonstrations(data: bytes) -> tuple[int, int]:
    """Number of worked examples, and the byte at which the question after them begins."""
    stripped = data.rstrip()
    if stripped.endswith(b":"):
        label = stripped[-24:].split()[-1]
        # a capital, or "as in the following:" twice in a letter would be few-shot
        if label[:1].isupper() and (earlier := stripped.count(label) - 1):
            answer = stripped.rfind(label, 0, -len(label)) + len(label)
            answer += len(stripped) - answer - len(stripped[answer:].lstrip())
            for seam in (b"\n\n", b"\n"):
                if (start := stripped.find(seam, answer)) >= 0:
                    return earlier, start
            return earlier, answer
    opens_line = data.startswith(b"Q") or b"\nQ" in data
    labels = list(_QUESTION_LABEL.finditer(b"\n" + data)) if opens_line else []
    return (len(labels) - 1, labels[-1].start()) if len(labels) > 1 else (0, 0)


def _class_counts(classes: bytes) -> tuple[list[int], list[int]]:
    """How often each class occurs (lines for ``_NEWLINE``), and the counts of ``_PAIRS`` and ``_BUILDING_PAIRS``."""
    codes = np.frombuffer(classes, np.uint8)
    pairs = codes[:-1] * _ROW
    pairs += codes[1:]
    histogram = np.bincount(pairs, minlength=_N_CLASSES * _N_CLASSES)
    count: list[int] = np.add.reduce(histogram.reshape(_N_CLASSES, _N_CLASSES), axis=1).tolist()
    sums: list[int] = np.add.reduceat(histogram.take(_SUM_CODES), _SUM_STARTS).tolist()
    return count, sums


def _words(ask: bytes, count: list[int]) -> tuple[list[bytes], bytes, list[int]]:
    """Lower-case words of the sample, the group of each (0: none), and the size of each group."""
    sample = _sample(ask)
    if count[_SYMBOL]:
        sample = sample.replace(b"\xe2\x80\x99", b"")  # the typographic apostrophe; the plain one is deleted below
    words = sample.translate(_WORD_BYTES, b"'").split() or [b""]
    hits = bytes(map(_GROUP_OF.get, words, _IN_NO_GROUP))
    groups: list[int] = np.bincount(np.frombuffer(hits, np.uint8), minlength=len(_GROUPS) + 1).tolist()
    return words, hits, groups


def _size(
    trace: Trace, data: bytes, parts: _Parts, classes: bytes, count: list[int], words: list[bytes], sentence_ends: int
) -> tuple[float, ...]:
    text, last, ask = trace.user_text, trace.last_user_text, parts.ask
    n_words = len(words) * max(1.0, len(ask) / (2 * SAMPLE))
    whole = parts.before_ask == 0 and not parts.schema
    totals = _totals(text, data, n_words if whole else _count_words(data))
    distinct = len(set(words))
    letters = sum(count[_LOWER:_SPACE]) + sum(count[_LATIN:_SYMBOL]) + count[_FAR]
    if last != text:
        last_data = _window(last)
        totals += _totals(last, last_data, _count_words(last_data))
    else:
        totals += totals
    return (
        *totals,
        len(ask) - count[_CONTINUATION],
        n_words,
        letters / n_words,
        n_words / max(1, sentence_ends),
        len(ask) / count[_NEWLINE],
        distinct,
        distinct / len(words),
        classes.count(_EIGHT_LETTERS) / n_words,
        parts.demonstrations,
        parts.before_ask / len(data),
    )


def _totals(text: str, data: bytes, n_words: float) -> tuple[float, ...]:
    """Characters, words and lines of a text, the last two scaled up from its window."""
    scale = max(1.0, len(text) / (2 * WINDOW))
    return len(text), n_words * scale, (data.count(b"\n") + 1) * scale


def _count_words(data: bytes) -> float:
    return len(_sample(data).translate(_WORD_BYTES, b"'").split()) * max(1.0, len(data) / (2 * SAMPLE))


def _schema(schema: bytes, words: list[bytes], n_bytes: int) -> tuple[float, ...]:
    if not schema:
        return _NO_SCHEMA
    functions = schema.count(b'"parameters"')
    numeric = sum(map(schema.count, (b'"integer"', b'"float"', b'"number"', b'"double"')))
    required = sum(names.count(b",") + 1 for names in _REQUIRED.findall(schema))
    asked = {word for word, group in zip(words, map(_GROUP_OF.get, words, _IN_NO_GROUP), strict=False) if not group}
    offered = set(schema[:_SCHEMA_SAMPLE].translate(_WORD_BYTES, b"'").split())
    return (
        functions,
        max(0, schema.count(b'"type"') - functions),
        numeric,
        required,
        schema.count(b'"enum"'),
        schema.count(b"format") + schema.count(b"e.g."),
        _levels(schema),
        len(schema) / n_bytes,
        len(asked & offered) / max(1, len(asked)),
    )


def _levels(schema: bytes) -> int:
    """How deep the braces are nested, up to 16: innermost pairs are removed until none is left."""
    braces = schema.translate(None, _NO_BRACES)
    levels = 0
    while levels < 16 and b"{}" in braces:
        braces = braces.replace(b"{}", b"")
        levels += 1
    return levels


def _characters(count: list[int], groups: list[int], n_words: int, numbers: int, capitals: int) -> tuple[float, ...]:
    chars = max(1, sum(count) - count[_CONTINUATION])
    foreign = count[_LATIN:]
    return (
        count[_DOLLAR],
        count[_CARET],
        count[_EQUALS],
        count[_QUESTION],
        count[_QUOTE] // 2,
        count[_APOSTROPHE],
        count[_COMMA],
        count[_PLUS],
        count[_DASH],
        count[_PAREN],
        count[_OPEN],
        numbers,
        count[_DIGIT] / chars,
        count[_UPPER] / chars,
        sum(count[_PAREN:_PLUS]) / chars,
        (sum(count[_EQUALS:_HASH]) + count[_PLUS]) / chars,
        sum(foreign) / chars,
        *(n / chars for n in foreign),
        max(0, capitals) / max(1, count[_SPACE]),
        (groups[-1] + groups[-2]) / n_words,
        groups[-2] / n_words,
    )


def _numbers(ask: bytes) -> tuple[float, float]:
    """Digits of the longest number, and the count of years among the first hundred numbers."""
    numbers = _sample(ask).translate(_DIGIT_BYTES).split()
    years = sum(len(number) == 4 and number[:2] in (b"19", b"20") for number in numbers[:100])
    return max(map(len, numbers), default=0), years


def _marks(lines: bytes, count: list[int], operator_pairs: int, indented: int, errors: int) -> tuple[float, ...]:
    ticks = count[_TICK]
    fences = lines.count(b"```") if ticks > 2 else 0
    levels = 0
    while indented and levels < 8 and b"\n" + b"    " * (levels + 1) in lines:
        levels += 1
    python_trace = errors > 0 and b"Traceback (" in lines
    return (
        fences,
        max(0, ticks - 3 * fences) // 2,
        lines.count(b">>> ") if operator_pairs else 0,
        levels,
        float(python_trace or (indented > 0 and _FRAME.search(lines) is not None)),
    )


def _question(ask: bytes, words: list[bytes], hits: bytes, marks: int) -> tuple[float, ...]:
    """Form of the last question, and of the opening words."""
    first = words[0]
    imperative = hits[0] in _VERBS or (first in _OPENERS and not _VERBS.isdisjoint(hits[1:5]))
    if not marks:
        return *_NO_QUESTION, float(first in _WH), float(imperative)
    end = ask.rfind(b"?")
    before = ask[max(0, end - _SENTENCE_BYTES) : end]
    start = max(before.rfind(b"\n"), before.rfind(b". "), before.rfind(b"? "), before.rfind(b"! "))
    sentence = before[start + 1 :].translate(_WORD_BYTES, b"'").split() or [b""]
    kind = [0.0] * (len(_WH) + 1)
    wh = next(filter(_WH.__contains__, sentence), None)
    if wh == b"how" and sentence[sentence.index(wh) + 1 :][:1] in ([b"many"], [b"much"]):
        kind[_HOW_MANY] = 1.0
    elif wh:
        kind[_WH[wh]] = 1.0
    yes_no = float(sentence[0] in _AUXILIARIES)
    return len(sentence), end / len(ask), *kind, yes_no, float(first in _WH), float(imperative)


def _options(lines: bytes, count: list[int]) -> tuple[float, ...]:
    """Multiple choice: the text before the options, and the last run of letters in order that starts with A."""
    if b"A)" not in lines and b"A." not in lines and b"A:" not in lines:  # a run starts with A; most texts end here
        return len(lines), 0.0, 0.0, 0.0, 0.0
    found = list(_LINE_OPTION.finditer(lines)) if count[_NEWLINE] > 1 else []
    if len(found) < 2 and count[_PAREN] > 1:
        found = list(_INLINE_OPTION.finditer(lines))
    stem, options = len(lines), list[bytes]()
    for match in found:
        letter, option = match.groups()
        if letter == b"A":
            stem, options = match.start(), [option]
        elif options and letter[0] == ord("A") + len(options):
            options.append(option)
    if len(options) < 2:
        return len(lines), 0.0, 0.0, 0.0, 0.0
    lengths = list(map(len, options))
    numeric = sum(option.lstrip(b"$-+.( ")[:1].isdigit() for option in options)
    return stem, len(options), sum(lengths) / len(options), min(lengths) / max(1, *lengths), numeric / len(options)


def _ending(data: bytes) -> tuple[float, ...]:
    tail = data[-200:]
    last = tail.rstrip()[-1:]
    return float(last == b":"), float(last == b"?"), 1 - len(tail.translate(None, b"0123456789")) / len(tail)


def _conversation(request: RouteRequest, trace: Trace) -> tuple[float, ...]:
    limit = request.max_output_tokens
    return (
        trace.user_turns,
        trace.assistant_turns,
        trace.tool_calls,
        trace.tool_calls / max(1, trace.assistant_turns),
        trace.failed_tool_calls,
        trace.failed_tool_calls / max(1, trace.tool_results),
        trace.tools_offered,
        trace.images,
        trace.pdfs,
        trace.videos,
        trace.audios,
        limit or 0.0,
        float(limit is not None),
        float(request.supervised is True),
        float(request.supervised is False),
        float(request.verifier is not None),
    )
