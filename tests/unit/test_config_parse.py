"""Broken config.pbtxt and override JSON: the text, the place and the fix that the user reads."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast.config import parse
from triton_fast.errors import Code


def failure(text: str | bytes) -> cfg.ConfigError:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(cfg.ConfigError) as caught:
        parse.parse_text(data, "m/config.pbtxt")
    return caught.value


# (config, line, column, part of the text, hint)
BROKEN = {
    "unknown field in a message": (
        'input {\n  name: "a"\n  dim: [ 4 ]\n}', 3, 3,
        'Message type "inference.ModelInput" has no field named "dim". In line: dim: [ 4 ]', "did you mean 'dims'?",
    ),
    "unknown field at the top": ("inputs { }", 1, 1, 'no field named "inputs"', "did you mean 'input'?"),
    "misspelt field": ("max_batchsize: 4", 1, 1, 'no field named "max_batchsize"', "did you mean 'max_batch_size'?"),
    "field of the top level inside a message": (
        "input { max_batch_size: 4 }", 1, 9, 'no field named "max_batch_size"',
        "'max_batch_size' belongs at the top level, outside of these braces",
    ),
    "field of a block at the top level": (
        "preferred_batch_size: [ 4 ]", 1, 1, 'no field named "preferred_batch_size"',
        "'preferred_batch_size' belongs in 'dynamic_batching'",
    ),
    "datatype of another tool": (
        "input {\n  data_type: TYPE_FLOAT\n}", 2, 14, 'Enum type "inference.DataType" has no value named TYPE_FLOAT',
        "did you mean 'TYPE_FP32'?",
    ),
    "datatype without TYPE_": ("output { data_type: FP16 }", 1, 21, "no value named FP16", "did you mean 'TYPE_FP16'?"),
    "datatype by its wire name": (
        "output { data_type: TYPE_BYTES }", 1, 21, "no value named TYPE_BYTES", "did you mean 'TYPE_STRING'?"
    ),
    "unknown instance kind": (
        "instance_group { kind: KIND_GPUS }", 1, 24, "no value named KIND_GPUS", "did you mean 'KIND_GPU'?"
    ),
    "enum by a number that does not exist": (
        "input { data_type: 77 }", 1, 20, "no value with number 77", "one of TYPE_BOOL, TYPE_UINT8"
    ),
    "template variable for a number": (
        'name: "m"\nmax_batch_size: ${triton_max_batch_size}', 2, 17, "Couldn't parse integer: $",
        "the template variable ${triton_max_batch_size} was not filled in",
    ),
    "template variable for a string": (
        "name: ${model_name}", 1, 7, "Expected string", "the template variable ${model_name} was not filled in"
    ),
    "typographic quotes": (
        "name: \u201cm\u201d", 1, 7, "Expected string", "replace the typographic quote \u201c (U+201C)"
    ),
    "zero-width space": ("max_batch_size: \u200b4", 1, 17, "Couldn't parse integer", "invisible character U+200B"),
    "string without quotes": ("name: resnet", 1, 7, "Expected string", 'put the value in quotes: "resnet"'),
    "number in quotes": ('max_batch_size: "4"', 1, 17, "Couldn't parse integer", "remove the quotes: 4"),
    "fraction for a whole number": ("max_batch_size: 1.5", 1, 17, "Couldn't parse integer: 1.5", "whole number"),
    "number out of range": ("max_batch_size: 99999999999", 1, 17, "Value out of range: 99999999999", ""),
    "negative unsigned": (
        "version_policy { latest { num_versions: -1 } }", 1, 41, "Value out of range: -1", ""
    ),
    "message never closed": (
        'input [\n  {\n    name: "a"\n', 3, 11, "Expected", "the '{' of line 2 is never closed"
    ),
    "one brace too many": (
        'input { name: "x" }\n}', 2, 1, "Expected identifier", "the '}' on line 2 closes nothing"
    ),
    "list closed by a brace": (
        "input [ { dims: [ 1, 2 } ]", 1, 24, "Expected", "the '[' of line 1 is closed by '}' on line 1"
    ),
    "items without a comma": (
        "instance_group [ { count: 1 } { count: 2 } ]", 1, 31, 'Expected ","', "by commas"
    ),
    "string never closed": ('name: "abc\nbackend: "x"', 1, 7, "missing ending quote", "close the string"),
    "equals sign": ('name = "m"', 1, 6, 'Expected ":"', "write 'name: value' with a colon"),
    "C comment": ('// my model\nname: "m"', 1, 1, "Expected identifier", "comments begin with #"),
    "JSON instead": ('{"name": "m"}', 1, 1, "Expected identifier", "no JSON"),
    "scalar for a message": ("input: 4", 1, 8, 'Expected "{"', "this field is a message"),
    "not a boolean": ("optimization { eager_batching: yes }", 1, 32, 'Expected "true"', "write true or false"),
    "twice the same field": ('name: "a"\nname: "b"', 2, 1, 'not have multiple "name" fields', "keep one of them"),
    "twice, the value elsewhere": (
        'name: "a" input { name: "x" name: # again\n\n"name" }', 1, 29, 'not have multiple "name" fields', "keep one"
    ),
    "two schedulers": (
        "dynamic_batching { }\nsequence_batching { }", 2, 1, "another member of oneof", "keep one of the two"
    ),
    "Latin-1 text": ('# r\u00e9seau\nname: "m"'.encode("latin-1"), 1, 4, "byte 0xe9 is not UTF-8", "save the file"),
    "NUL byte": (b'name: "m"\n\0', 2, 1, "byte 0x00 cannot be in a text file", "save the file"),
    "UTF-16": ('name: "m"'.encode("utf-16"), 0, 0, "the file is UTF-16", "save it as UTF-8"),
    "a number of 5000 digits": ("max_batch_size: " + "9" * 5000, 1, 17, "Couldn't parse integer", "whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_broken_text(case: tuple[str | bytes, int, int, str, str]) -> None:
    text, line, column, part, hint = case
    error = failure(text)
    assert error.code is Code.INVALID_ARG
    assert (error.line, error.column) == (line, column), error
    where = f"m/config.pbtxt:{line}:{column}: " if line else "m/config.pbtxt: "
    assert str(error).startswith(f"failed to read text proto from {where}")
    assert part in error.text
    assert hint in error.hint
    assert bool(hint) == bool(error.hint), error.hint
    assert "\n" not in str(error)
    assert len(str(error)) < 700


def test_reads_what_editors_leave_behind() -> None:
    text = 'name: "m"\r\nmax_batch_size: 0\r\ninput { name: "a", dims: [ 1, -1 ]; }\r\n'
    parsed = parse.parse_text(b"\xef\xbb\xbf" + text.encode(), "f")
    assert parsed.config.name == "m"
    assert list(parsed.config.input[0].dims) == [1, -1]
    # A written zero is the user's choice, an absent field is not.
    assert parsed.given == {"name", "max_batch_size", "input"}


def test_long_lines_and_control_characters_are_cut_and_escaped() -> None:
    error = failure("# \x1b[31m" + "x" * 500 + "\n" + "y" * 5000 + ": 1 \x1b")
    assert len(str(error)) < 700
    assert "\x1b" not in str(error)


def test_templates_are_found_outside_of_comments() -> None:
    text = '# ${a}\nname: "${model}" # ${b}\nparameters { key: "x # ${c}" }'
    assert cfg.templates(text) == [(2, 8, "${model}"), (3, 24, "${c}")]


def test_file_must_be_a_regular_one_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "config.pbtxt"
    os.mkfifo(path)
    with pytest.raises(cfg.ConfigError, match=r"m/config\.pbtxt: not a regular file"):
        cfg.load_model_config(tmp_path / "m", strict=False)
    path.unlink()
    path.write_bytes(b"#" * (parse.MAX_BYTES + 1))
    with pytest.raises(cfg.ConfigError, match="larger than 4194304 bytes"):
        cfg.load_model_config(tmp_path / "m", strict=False)


def test_strict_needs_a_file_and_names_the_one_meant(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt.txt").write_text('backend: "python"')
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.load_model_config(tmp_path / "m", strict=True)
    assert caught.value.text == "failed to open text file for read m/config.pbtxt: No such file or directory"
    assert caught.value.hint == "found 'config.pbtxt.txt': rename it to 'config.pbtxt'"


def test_named_config_or_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "m" / "configs").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"')
    (tmp_path / "m" / "configs" / "h100.pbtxt").write_text('backend: "identity"')
    assert cfg.load_model_config(tmp_path / "m", strict=False, config_name="h100").backend == "identity"
    assert cfg.load_model_config(tmp_path / "m", strict=False, config_name="other").backend == "python"
    with pytest.raises(cfg.ConfigError, match="must be a plain name"):
        cfg.load_model_config(tmp_path / "m", strict=False, config_name="../../x")
    (tmp_path / "m" / "configs" / "h100.pbtxt").write_text("nme: 1")
    with pytest.raises(cfg.ConfigError, match=r"m/configs/h100\.pbtxt:1:1: "):
        cfg.load_model_config(tmp_path / "m", strict=False, config_name="h100")


@pytest.mark.parametrize(
    ("override", "text", "hint"),
    [
        ('{"foo": 1}', "foo: Cannot find field.", ""),
        ('{"input": [{}, {"dim": [1]}]}', "input[1].dim: Cannot find field.", "did you mean 'dims'?"),
        (
            '{"input": [{"name": "a", "data_type": "TYPE_FP99"}]}',
            '(input[0].data_type): invalid value "TYPE_FP99" for type type.googleapis.com/inference.DataType',
            "did you mean 'TYPE_FP64'?",
        ),
        ('{"parameters": {"a": {"value": "x"}}}', 'parameters["a"].value: Cannot find field.', "string_value"),
        ("[]", ": Root element must be a message.", "{...}"),
        ('{"max_batch_size": "abc"}', "max_batch_size", ""),
        ('{"max_batch_size": 3000000000}', "max_batch_size", ""),
        ('{"input": [{"data_type": 77}]}', "77", ""),
        ('{"input": 4}', "input", ""),
        ("", "at line 1 column 1", ""),
        ('{"max_batch_size":', "at line 1 column 19", ""),
        ('{"name": "\ud800"}', "at line 1", ""),
    ],
)
def test_broken_override(override: str, text: str, hint: str) -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        parse.parse_json(override)
    assert caught.value.text.startswith("Invalid config override: ")
    assert text in caught.value.text
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, '{"input":[' * 10**5, '{"x":"[[\\"[[",' + "[" * 64, "[" * 65 + "]" * 65]
)
def test_deep_override_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(cfg.ConfigError, match="JSON nested deeper than 64 at byte"):
        parse.parse_json(text)


def test_long_strings_cost_little_memory() -> None:
    for text in ("x" * (3 << 20), "\\n" * (1 << 20)):
        tracemalloc.start()
        try:
            parse.parse_json(f'{{"name": "m", "metric_tags": {{"a": "{text}"}}}}')
            assert tracemalloc.get_traced_memory()[1] < 60 << 20
        finally:
            tracemalloc.stop()


def test_a_million_escapes_in_an_open_string_are_scanned_once() -> None:
    # A scan that starts again at every quote would not end within the suite's time limit.
    with pytest.raises(cfg.ConfigError, match="Invalid config override"):
        parse.parse_json('{"name": "' + '\\"' * 1_000_000)


def test_brackets_in_strings_do_not_count() -> None:
    parsed = parse.parse_json(json.dumps({"name": "[{" * 500 + '\\"'}))
    assert parsed.config.name.startswith("[{[{")


def test_override_accepts_what_triton_accepts() -> None:
    text = '{"backend": "p", "maxBatchSize": "8", "input": [{"name": "a", "dataType": "type_fp32", "dims": ["4", -1]}]}'
    parsed = parse.parse_json(text)
    assert parsed.config.max_batch_size == 8
    assert list(parsed.config.input[0].dims) == [4, -1]
    assert parsed.config.input[0].data_type == 11
    assert parsed.given == {"backend", "max_batch_size", "input"}


def test_a_text_that_was_parsed_before_is_not_parsed_again(monkeypatch):
    data = b'name: "remembered" max_batch_size: 0 parameters { key: "a" value { string_value: "b" } }'
    first = parse.parse_text(data, "m/config.pbtxt")
    monkeypatch.setattr(parse.text_format, "Parse", None)
    second = parse.parse_text(data, "n/config.pbtxt")
    assert second == first
    assert second.given == {"name", "max_batch_size", "parameters"}
    # What is made of one is not seen in the other.
    first.config.name = "changed"
    first.config.parameters["a"].string_value = "changed"
    third = parse.parse_text(data, "m/config.pbtxt")
    assert third.config == second.config
    assert third.config.parameters["a"].string_value == "b"


def test_a_fault_is_told_with_the_name_of_the_file_that_has_it():
    for label in ("m/config.pbtxt", "n/config.pbtxt", "m/config.pbtxt"):
        with pytest.raises(cfg.ConfigError, match=f"{label}:1:1"):
            parse.parse_text(b"inputs { }", label)


def test_a_long_text_is_not_remembered():
    data = b'name: "long"\n#' + b"x" * parse.MEMO_BYTES
    before = parse._remembered.cache_info()
    assert parse.parse_text(data, "m/config.pbtxt").config.name == "long"
    assert parse._remembered.cache_info() == before
