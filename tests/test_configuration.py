"""YAML reading and checked fields, apart from any pool."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from router_ml.configuration import COUNT, SHARE, Checked, build, changed, of, parse_yaml
from router_ml.errors import PoolError, brief


@dataclass(frozen=True, slots=True)
class Knob(Checked):
    turns: int = of(COUNT)
    share: float = of(SHARE, 0.5)
    spare: float | None = of(SHARE, None)


def test_values_are_brought_to_their_stored_type() -> None:
    assert isinstance(Knob(1, share=1).share, float)


def test_a_field_whose_default_is_none_accepts_none_and_others_do_not() -> None:
    assert Knob(1, spare=None).spare is None
    with pytest.raises(PoolError, match=r"share is None; expected a number in \[0, 1\]"):
        Knob(1, share=None)  # type: ignore[arg-type]


def test_an_error_from_a_nested_mapping_carries_the_path() -> None:
    with pytest.raises(PoolError, match=r"^a\.b\.share is 2; expected"):
        build(Knob, {"turns": 1, "share": 2}, "a.b")


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(PoolError, match=r"^a\.turns is missing; expected a whole number >= 1"):
        build(Knob, {}, "a")


def test_changed_leaves_out_defaults() -> None:
    assert changed(Knob(3)) == {"turns": 3}
    assert changed(Knob(3), keep=("share",)) == {"turns": 3, "share": 0.5}


def test_a_repeated_key_is_refused_with_its_line() -> None:
    with pytest.raises(PoolError, match=r"f\.yaml line 3: key 'b' is there twice"):
        parse_yaml("a:\n  b: 1\n  b: 2\n", "f.yaml")


def test_a_repeated_key_inside_a_list_is_found() -> None:
    with pytest.raises(PoolError, match="line 2: key 'name'"):
        parse_yaml("- {name: x}\n- {name: y, name: z}\n", "f")


def test_equal_keys_of_different_mappings_are_fine() -> None:
    assert parse_yaml("- {name: x}\n- {name: y}\n", "f") == [{"name": "x"}, {"name": "y"}]


def test_an_alias_to_its_own_parent_does_not_loop() -> None:
    content = parse_yaml("&a [1, *a]", "f")
    assert content[1] is content


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\x00", "a: 2026-13-45", "!!python/object:os.system {}"])
def test_bad_yaml_is_one_pool_error_naming_the_file(text: str) -> None:
    with pytest.raises(PoolError, match=r"^f\.yaml.*not valid YAML"):
        parse_yaml(text, "f.yaml")


def test_an_empty_document_is_none() -> None:
    assert parse_yaml("# only a comment\n", "f") is None


def test_a_long_value_is_cut_in_an_error() -> None:
    assert len(brief("x" * 1000)) == 60
