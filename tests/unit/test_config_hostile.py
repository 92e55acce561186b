"""Mutated configs: each is read, or refused by one of the server's own errors; nothing else may come out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast import protos
from triton_fast.config import parse
from triton_fast.errors import ServerError

TEXT = """
name: "m" backend: "python" max_batch_size: 8
input [ { name: "A" data_type: TYPE_FP32 dims: [ 2, -1 ] }, { name: "B" data_type: TYPE_STRING dims: 1 reshape { } } ]
output { name: "C" data_type: TYPE_INT64 dims: [ 4 ] label_filename: "labels.txt" }
batch_input { kind: BATCH_ITEM_SHAPE target_name: "S" data_type: TYPE_FP32 source_input: "A" }
dynamic_batching { preferred_batch_size: [ 2, 4 ] priority_levels: 2 default_priority_level: 1
  priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 77 } } }
instance_group { count: 2 kind: KIND_CPU rate_limiter { resources { name: "R" count: 2 } } }
model_warmup { name: "w" batch_size: 1
  inputs { key: "A" value { data_type: TYPE_FP32 dims: [ 2, 3 ] zero_data: true } } }
parameters { key: "p" value { string_value: "text" } }
"""
PIECES = [
    "{", "}", "[", "]", "<", ">", '"', "'", ":", ";", ",", "#", "-", "0", "-1", "9" * 400, "1e999", "nan", "inf", "\\",
    "\\x", "\\xff", "\0", "\ud800", "\u200b", "${x}", "name", "input", "TYPE_FP32", "true", "[a.b/c.D]", "any { }",
    "\n", "\x1b[0m",
]  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at, end = rng.randrange(len(text)), rng.randrange(len(text))
        action = rng.randrange(4)
        if action == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif action == 1:
            text = text[:at] + text[at + rng.randint(1, 12) :]
        elif action == 2:
            text = text[:at] + text[min(at, end) : max(at, end)][:60] + text[at:]
        else:
            text = text[:at] + chr(rng.randrange(1, 0x2FF)) + text[at + 1 :]
    return text


def serve(parsed: parse.Parsed) -> None:
    cfg.normalize(parsed.config, cpu_count=4)
    cfg.validate(parsed.config, Path("m"))
    json.dumps(cfg.to_json(parsed.config))


@pytest.mark.parametrize("seed", range(10))
def test_mutated_text(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(30):
        text = mutate(TEXT, rng)
        try:
            serve(parse.parse_text(text.encode("utf-8", "surrogatepass"), "m/config.pbtxt"))
        except ServerError as error:
            assert str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 1500


@pytest.mark.parametrize("seed", range(10))
def test_mutated_json(seed: int) -> None:
    rng = random.Random(seed)
    document = json.dumps(cfg.to_json(parse.parse_text(TEXT.encode(), "f").config))
    for _ in range(60):
        try:
            serve(parse.parse_json(mutate(document, rng)))
        except ServerError as error:
            assert str(error)
            assert len(str(error)) < 1500


def test_names_cannot_break_the_line_or_flood_the_log() -> None:
    parsed = parse.parse_text(b'name: "a\\n\\033[31mE1122 fake" backend: "python"', "f")
    with pytest.raises(ServerError) as caught:
        serve(parsed)
    assert "for model 'a\\n\\x1b[31mE1122 fake'" in str(caught.value)
    with pytest.raises(ServerError) as caught:
        serve(parse.parse_json(json.dumps({"backend": "python", "name": "x" * 10**6})))
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("value", [None, True, 1, -1, 2**70, 1.5, "", "x", [], [None], {}, {"a": 1}, [[1]], "\0" * 9])
def test_every_field_with_a_value_of_another_kind(value: object) -> None:
    for field in protos.ModelConfig.DESCRIPTOR.fields:
        try:
            parsed = parse.parse_json(json.dumps({"backend": "python", "name": "m", field.name: value}))
            serve(parsed)
        except ServerError as error:
            assert str(error)
