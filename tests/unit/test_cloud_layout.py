"""Object keys become files below a model's directory, or the model is refused; fingerprints follow ETags.

Source: spec/security.md SEC-01.
"""

from __future__ import annotations

import pytest

from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.layout import MAX_FILES, Layout, fingerprint_of, is_name, lay_out
from triton_fast.repository.cloud.store import Object

PREFIX = "repo/m/"


def item(path: str, size: int = 1, etag: str = "e", modified_ns: int = 0) -> Object:
    return Object(PREFIX + path, size, etag, modified_ns)


def laid(*items: Object) -> Layout:
    return lay_out(items, PREFIX)


HOSTILE = [
    "..", ".", "../x", "../../etc/passwd", "a/../b", "a/./b", "./a", "/etc/passwd", "//x", "a//b", "a/", "",
    "\0", "a\0b", "a\\b", "..\\x", "C:\\x", "\\\\server\\share", "a\nb", "a\tb", "\x1b[2J", "\x7f", "a\u202eb",
    "\udcff", "a\ud800", "x" * 256, "\u00e9" * 128, "/".join("d" * 40), "/".join(["x" * 100] * 11), "1/..", "1/../../x",
    "..\u0000/x",
]  # fmt: skip
# Spelled like places once decoded or folded by somebody else: here they are plain names of files.
STRANGE = [
    "%2e%2e", "%2e%2e%2fx", "...", "....", "a/...", "~", "~root", "$HOME", "`id`", "-rf", "*", "?", "CON", "C:", "a:b",
    "\uff0e\uff0e", "\u2025", "x" * 255, " ", "a ", "1/model.onnx", "configs/x.pbtxt", ".hidden", "'", '"', "&", "|",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_keys_are_refused(path: str) -> None:
    with pytest.raises(StoreError, match="is refused: it can not be the path of a file; remove or rename") as caught:
        laid(item(path))
    assert caught.value.kind is Kind.KEY
    str(caught.value).encode()


@pytest.mark.parametrize("path", STRANGE)
def test_strange_keys_are_only_names(path: str) -> None:
    assert list(laid(item(path)).files) == [path]


@pytest.mark.parametrize("key", ["repo/n/x", "x", "repo/m", "/repo/m/x", "repo/mm/x", "../repo/m/x"])
def test_keys_that_are_not_below_the_model(key: str) -> None:
    with pytest.raises(StoreError, match="not below the model"):
        lay_out([Object(key, 1, "e", 0)], PREFIX)


def test_a_file_and_a_directory_of_one_name() -> None:
    for rows in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(StoreError, match="both a file and a directory"):
            laid(*map(item, rows))
    with pytest.raises(StoreError, match="both a file and a directory"):
        laid(item("a"), item("a"))
    with pytest.raises(StoreError, match="both a file and a directory"):
        laid(item("a", 0), item("a"))


def test_too_many() -> None:
    with pytest.raises(StoreError, match=f"more than {MAX_FILES} objects"):
        lay_out((item(str(i)) for i in range(MAX_FILES + 1)), PREFIX)


def test_markers_of_directories() -> None:
    # dir/ loses its slash in a listing: an empty object that has others below it.
    found = laid(
        item("1", 0), item("1/model.onnx"), item("2_$folder$", 0), item("a/b_$folder$", 0), item("_$folder$", 0)
    )
    assert (set(found.files), found.folders) == ({"1/model.onnx"}, {"1", "2", "a", "a/b"})
    assert not found.unclear
    # The marker of the model itself.
    assert lay_out([Object("repo/m", 0, "e", 0)], PREFIX) == Layout()
    with pytest.raises(StoreError):
        laid(item("../x_$folder$", 0))
    # Only empty ones are markers.
    assert set(laid(item("2_$folder$", 1)).files) == {"2_$folder$"}


def test_an_empty_object_alone_is_unclear() -> None:
    found = laid(item("1", 0), item("2", 0), item("1x", 1), item("__init__.py", 0))
    assert found.unclear == {"1", "2"}
    found.settle("1", is_folder=True)
    found.settle("2", is_folder=False)
    assert (set(found.files), found.folders, found.unclear) == ({"2", "1x", "__init__.py"}, {"1"}, set())


def test_sizes() -> None:
    assert laid(item("a", 3), item("b/c", 4)).size == 7


# ---- fingerprints

MODEL = [item("config.pbtxt"), item("configs/a.pbtxt"), item("labels.txt"), item("1/model.onnx"), item("2/model.onnx")]


def test_the_same_objects_look_the_same_in_any_order() -> None:
    assert fingerprint_of(laid(*MODEL)) == fingerprint_of(laid(*reversed(MODEL)))
    assert set(fingerprint_of(laid(*MODEL)).versions) == {"1", "2"}


def test_stored_again_unchanged_is_no_change() -> None:
    again = [Object(row.key, row.size, row.etag, 999) for row in MODEL]
    assert fingerprint_of(laid(*MODEL)) == fingerprint_of(laid(*again))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (item("config.pbtxt", etag="f"), "config"),
        (item("configs/a.pbtxt", 2), "config"),
        (item("configs/b.pbtxt"), "config"),
        (item("labels.txt", etag="f"), "common"),
        (item("more/x"), "common"),
        (item("1/model.onnx", etag="f"), "1"),
        (item("1/model.onnx", 2), "1"),
        (item("1/more.bin"), "1"),
    ],
)
def test_each_change_shows_in_its_part(changed: Object, part: str) -> None:
    before = fingerprint_of(laid(*MODEL))
    after = fingerprint_of(laid(*{row.key: row for row in [*MODEL, changed]}.values()))
    assert before != after
    assert after.same_version(before, "2") is (part == "1")
    assert after.same_version(before, "1") is False


def test_without_an_etag_the_time_tells() -> None:
    one = fingerprint_of(laid(item("1/x", etag="", modified_ns=1)))
    assert one == fingerprint_of(laid(item("1/x", etag="", modified_ns=1)))
    assert one != fingerprint_of(laid(item("1/x", etag="", modified_ns=2)))


def test_versions_come_and_go() -> None:
    before = fingerprint_of(laid(*MODEL))
    assert fingerprint_of(laid(*MODEL[:-1])).versions == {"1": before.versions["1"]}
    assert "3" in fingerprint_of(laid(*MODEL, item("3_$folder$", 0))).versions


def test_byte_code_is_no_change() -> None:
    assert fingerprint_of(laid(*MODEL)) == fingerprint_of(laid(*MODEL, item("1/__pycache__/model.pyc")))


def test_names() -> None:
    assert is_name("model") and not is_name("") and not is_name("a/b") and not is_name("a\\b")
