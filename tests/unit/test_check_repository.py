"""`triton_fast check`: what it says of broken repositories, of several faults at once, and of sound ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import standin_cuda
from tests.unit.broken_repositories import CASES, HEAD, IO, MODEL, ONNX
from triton_fast import backends
from triton_fast.cli import check
from triton_fast.config import ConfigError
from triton_fast.config.locate import locate
from triton_fast.repository.check import Checker, Finding
from triton_fast.repository.prepare import Preparer


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("latin-1" if content == ONNX else "utf-8"))
    return root


def found(root: Path, *others: Path) -> list[Finding]:
    return Checker([root, *others]).run()


@pytest.mark.parametrize("name", CASES)
def test_broken_repository(tmp_path: Path, name: str) -> None:
    files, place, text, hint = CASES[name]
    findings = found(write(tmp_path, files))
    said = [str(finding) for finding in findings]
    assert any(
        line.startswith(place) and text in finding.text and hint in finding.hint
        for line, finding in zip(said, findings, strict=True)
    ), "\n".join(said) or "nothing found"


def test_there_are_sixty() -> None:
    assert len(CASES) >= 60


def test_a_sound_repository(tmp_path: Path) -> None:
    files = {
        "a/config.pbtxt": HEAD + IO, "a/1/model.onnx": ONNX, "b/1/model.py": MODEL, "c/1/model.onnx": ONNX,
        "derived/1/model.py": "from base import Model\nclass TritonPythonModel(Model):\n    pass\n",
    }  # fmt: skip
    assert found(write(tmp_path, files)) == []


GROUPS = "instance_group [ { kind: KIND_GPU } ]\n"
CPU_ONLY = "backend 'identity' as installed runs on the CPU only"


@pytest.mark.parametrize(
    ("backend", "groups", "gpus", "text"),
    [
        ("identity", GROUPS, (0, 1), CPU_ONLY),
        ("identity", "instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]\n", (0, 1), CPU_ONLY),
        ("identity", GROUPS, (), "has kind KIND_GPU but no GPUs are available"),
        ("identity", "instance_group [ { kind: KIND_AUTO gpus: [ 1 ] } ]\n", (0, 1), "specifies one or more GPUs"),
        ("identity", "instance_group [ { kind: KIND_AUTO } ]\n", (0, 1), ""),
        ("identity", "", (0,), ""),
        ("python", GROUPS, (0,), ""),
    ],
)
def test_instance_groups_as_loading_sees_them(
    tmp_path: Path, backend: str, groups: str, gpus: tuple[int, ...], text: str
) -> None:
    config = f'backend: "{backend}"\n{IO}{groups}'
    write(tmp_path, {"m/config.pbtxt": config, "m/1/model.identity": "x", "m/1/model.py": MODEL})
    said = [finding.text for finding in Checker([tmp_path], gpus=gpus).run()]
    assert len(said) == bool(text) and all(text in one for one in said), said
    preparer = Preparer(backends.get, gpus=gpus)
    if not text:
        preparer.read("m", tmp_path / "m")
        return
    with pytest.raises(ConfigError) as raised:
        preparer.read("m", tmp_path / "m")
    assert raised.value.text == said[0]


def test_the_verb_knows_the_gpus_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path, {"p/config.pbtxt": f'backend: "python"\n{IO}{GROUPS}', "p/1/model.py": MODEL})
    write(tmp_path, {"m/config.pbtxt": f'backend: "identity"\n{IO}{GROUPS}', "m/1/model.identity": "x"})
    command = [sys.executable, "-m", "triton_fast", "check", "--json", str(tmp_path)]
    for environment, models in ((standin_cuda.environment(), ["m"]), (standin_cuda.environment(0), ["m", "p"])):
        made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        assert made.returncode == 1
        assert [json.loads(line)["model"] for line in made.stdout.splitlines()] == models


def test_all_faults_of_one_config_are_told(tmp_path: Path) -> None:
    text = 'name: "n"\n' + HEAD + IO + "dynamic_batching { preferred_batch_size: [ 99 ] }\n"
    text += "instance_group [ { kind: KIND_GPU } ]\n"
    findings = found(write(tmp_path, {"m/config.pbtxt": text, "m/1/x": ""}))
    assert [finding.line for finding in findings] == [0, 1, 6, 7]


def test_several_repositories(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, {"m/1/model.onnx": ONNX}) for name in "ab")
    (finding,) = found(first, second)
    assert finding.text == "model appears in two or more repositories"


def test_the_wrong_number_of_labels_is_a_warning(tmp_path: Path) -> None:
    io = IO.replace('"Y" data_type: TYPE_FP32 dims: [ 4 ]', '"Y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "l"')
    (finding,) = found(write(tmp_path, {"m/config.pbtxt": HEAD + io, "m/1/model.onnx": ONNX, "m/l": "a\nb\n"}))
    assert finding.warning
    assert finding.text == "2 labels for output 'Y', which has 4 classes"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", {"m/1/model.onnx": ONNX})
    bad = write(tmp_path / "bad", {"m/config.pbtxt": "max_batchsize: 4\n", "m/1/model.onnx": ONNX})
    assert check.main([str(good)]) == 0
    assert capsys.readouterr().out == "1 models, 0 with errors: 0 errors, 0 warnings\n"
    assert check.main([str(bad)]) == 1
    assert capsys.readouterr().out.startswith("m/config.pbtxt:1:1: error: failed to read text proto")
    assert check.main(["--json", str(bad)]) == 1
    assert json.loads(capsys.readouterr().out)["line"] == 1
    assert check.main([str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_limits_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def config(scheduler: str, key: str) -> str:
        return f'{scheduler} {{ }} parameters {{ key: "{key}" value {{ string_value: "zero" }} }}'

    write(tmp_path, {"a/config.pbtxt": config("sequence_batching", "max_waiting_sequences"), "a/1/model.onnx": ONNX})
    write(tmp_path, {"b/config.pbtxt": config("dynamic_batching", "max_queue_bytes"), "b/1/model.onnx": ONNX})
    assert check.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "parameter 'max_waiting_sequences' of model 'a' must be a number from 1, got 'zero'" in said
    assert "parameter 'max_queue_bytes' of model 'b' must be a number of bytes from 1, got 'zero'" in said


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ('# "X"\nname: "X"\n', "about 'X'", (2, 7)),
        ("max_batch_size: 1", "the max_batch_size is", (1, 1)),
        ("a: 1", "about nothing", (1, 1)),
        ("", "'max_batch_size'", (1, 1)),
        ('x: "# not a comment" y: "Y"', "'Y'", (1, 25)),
    ],
)
def test_locate(text: str, message: str, place: tuple[int, int]) -> None:
    assert locate(text, message) == place


@pytest.mark.parametrize(("group", "told"), [("kind: KIND_GPU", True), ("kind: KIND_AUTO", False), ("", False)])
def test_a_backend_that_can_not_use_the_gpus_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, told: bool
) -> None:
    from triton_fast.backends.fil import gpu_library

    monkeypatch.setattr(gpu_library, "why_not", lambda: "nvforest is not installed: pip install nvforest-cu13")
    text = f'backend: "fil"\ninstance_group [ {{ {group} }} ]\n'
    findings = Checker([write(tmp_path, {"m/config.pbtxt": text, "m/1/xgboost.json": "{}"})], gpus=(0,)).run()
    assert [(one.file, one.line, one.text) for one in findings] == [
        ("m/config.pbtxt", 1,
         "instance group m_0 of model m has kind KIND_GPU but backend 'fil' as installed runs on the CPU only: "
         "nvforest is not installed: pip install nvforest-cu13"),
    ][:told]  # fmt: skip
    monkeypatch.setattr(gpu_library, "why_not", str)
    assert Checker([tmp_path], gpus=(0,)).run() == []
