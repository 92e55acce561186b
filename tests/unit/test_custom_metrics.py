"""Metrics that models make: sharing, rules, texts, rendering, and that nothing is left of a maker that ended."""

from __future__ import annotations

import pytest

from triton_fast.errors import InvalidArg, ServerError, Unsupported
from triton_fast.observability.custom import MAX_CHARS, MAX_SERIES, CustomMetrics
from triton_fast.observability.metrics import Metrics, exposition


def text(metrics):
    return exposition(metrics.collect()).decode()


def test_counter_gauge_and_histogram_are_printed():
    metrics = CustomMetrics()
    scope = metrics.scope()
    counter = scope.metric(scope.family("requests_ns", "Cumulative time", "counter"), {"model": "m", "q": 'a"\\\nb'})
    scope.update(counter, "increment", 23.5)
    scope.update(counter, "increment", 1)
    gauge = scope.metric(scope.family("level", "a gauge", "gauge"), {})
    scope.update(gauge, "set", 3.0)
    scope.update(gauge, "increment", -2.0)
    histogram = scope.metric(scope.family("sizes", "a histogram", "histogram"), {"a": "b"}, [0.1, 1.0, 2.5])
    for value in (1.0, 7.0, 0.05):
        scope.update(histogram, "observe", value)
    assert text(metrics) == (
        "# HELP level a gauge\n# TYPE level gauge\nlevel 1\n"
        "# HELP requests_ns Cumulative time\n# TYPE requests_ns counter\n"
        'requests_ns{model="m",q="a\\"\\\\\\nb"} 24.5\n'
        "# HELP sizes a histogram\n# TYPE sizes histogram\n"
        'sizes_count{a="b"} 3\nsizes_sum{a="b"} 8.05\nsizes_bucket{a="b",le="0.1"} 1\nsizes_bucket{a="b",le="1"} 2\n'
        'sizes_bucket{a="b",le="2.5"} 2\nsizes_bucket{a="b",le="+Inf"} 3\n'
    )


def test_makers_share_families_and_series_until_the_last_lets_go():
    metrics = CustomMetrics()
    one, two = metrics.scope(), metrics.scope()
    numbers = [
        (scope, scope.metric(scope.family("n", words, "counter"), {"k": "v"}))
        for scope, words in ((one, "first"), (two, "other words"))
    ]
    for scope, number in numbers:
        scope.update(number, "increment", 2)
    assert one.value(numbers[0][1]) == 4
    one.close()
    assert 'n{k="v"} 4\n' in text(metrics)
    two.close()
    two.close()
    assert text(metrics) == ""


def test_families_of_another_kind_or_name_are_refused():
    scope = CustomMetrics().scope()
    scope.family("n", "d", "counter")
    with pytest.raises(InvalidArg, match=r"^Family name already exists with different type$"):
        scope.family("n", "d", "gauge")
    for name in ("", "a b", "1a", "a-b", "ä", "x" * 300):
        with pytest.raises(InvalidArg, match=r"^Invalid metric name$"):
            scope.family(name, "d", "gauge")
    with pytest.raises(InvalidArg, match="server's own"):
        scope.family("nv_inference_count", "d", "counter")
    scope.family("nv_trt_llm_kv_cache", "d", "gauge")


@pytest.mark.parametrize(
    ("kind", "op", "value", "message"),
    [
        ("counter", "increment", -1, "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by "
         "non-negative values."),
        ("counter", "increment", float("nan"), "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented "
         "monotonically by non-negative values."),
        ("counter", "set", 1, "TRITONSERVER_METRIC_KIND_COUNTER does not support Set"),
        ("counter", "observe", 1, "TRITONSERVER_METRIC_KIND_COUNTER does not support Observe"),
        ("gauge", "observe", 1, "TRITONSERVER_METRIC_KIND_GAUGE does not support Observe"),
        ("histogram", "increment", 1, "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment"),
        ("histogram", "set", 1, "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Set"),
    ],
)  # fmt: skip
def test_operations_that_a_kind_lacks(kind, op, value, message):
    scope = CustomMetrics().scope()
    number = scope.metric(scope.family("n", "d", kind), {}, [1.0] if kind == "histogram" else None)
    with pytest.raises(ServerError) as caught:
        scope.update(number, op, value)
    assert str(caught.value) == message


def test_labels_and_buckets_are_checked():
    scope = CustomMetrics().scope()
    counter, histogram = scope.family("c", "d", "counter"), scope.family("h", "d", "histogram")
    for label in ("a b", "", "1", "__x"):
        with pytest.raises(InvalidArg, match=r"^Invalid label name$"):
            scope.metric(counter, {label: "x"})
    with pytest.raises(InvalidArg, match=r"^Invalid label name$"):
        scope.metric(histogram, {"le": "1"}, [1.0])
    with pytest.raises(InvalidArg, match=r"^Bucket Boundaries must be strictly sorted$"):
        scope.metric(histogram, {}, [2.0, 1.0])
    with pytest.raises(InvalidArg, match="Missing required buckets"):
        scope.metric(histogram, {})
    with pytest.raises(InvalidArg, match="Unexpected buckets found"):
        scope.metric(counter, {}, [1.0])
    number = scope.metric(histogram, {}, [1.0, float("inf")])
    with pytest.raises(Unsupported, match="HISTOGRAM does not support Value"):
        scope.value(number)


def test_the_number_of_series_is_bounded():
    metrics = CustomMetrics()
    scope = metrics.scope()
    family = scope.family("n", "d", "gauge")
    for number in range(MAX_SERIES):
        scope.metric(family, {"k": str(number)})
    with pytest.raises(Unsupported):
        scope.metric(family, {"k": "more"})
    scope.metric(family, {"k": "0"})
    scope.close()
    other = metrics.scope()
    other.metric(other.family("n", "d", "gauge"), {"k": "more"})


def test_they_stand_behind_the_servers_own_families():
    custom = CustomMetrics()
    metrics = Metrics(list)
    metrics.registry.register(custom)
    scope = custom.scope()
    scope.update(scope.metric(scope.family("mine", "d", "gauge"), {}), "set", 2.5)
    assert metrics.render().endswith(b"# HELP mine d\n# TYPE mine gauge\nmine 2.5\n")


def test_labels_and_buckets_have_a_limit_together_and_leave_nothing():
    metrics = CustomMetrics()
    scope = metrics.scope()
    gauge, histogram = scope.family("g", "d", "gauge"), scope.family("h", "d", "histogram")
    half = scope.metric(gauge, {"a": "x" * (MAX_CHARS // 2)})
    buckets = list(map(float, range(100)))
    for labels, bounds, family in (
        ({"a": "y" * (MAX_CHARS // 2)}, None, gauge), ({"a": "y" * (MAX_CHARS // 200)}, buckets, histogram)
    ):  # fmt: skip
        with pytest.raises(Unsupported, match="labels and buckets of metrics made by models take more than"):
            scope.metric(family, labels, bounds)
        scope.metric(family, {"a": "y"}, bounds)
    assert scope.metric(gauge, {"a": "x" * (MAX_CHARS // 2)}) != half  # shared
    scope.close()
    scope = metrics.scope()
    scope.metric(scope.family("g", "d", "gauge"), {"a": "x" * (MAX_CHARS - 100)})


@pytest.mark.parametrize("suffix", ["bucket", "count", "sum"])
def test_no_family_is_named_as_a_histograms_samples(suffix):
    """A scrape would have the same series twice."""
    metrics = CustomMetrics()
    scope = metrics.scope()
    histogram = scope.family("h", "d", "histogram")
    with pytest.raises(InvalidArg, match="Family name already exists with different type"):
        scope.family(f"h_{suffix}", "d", "gauge")
    scope.family("other_count", "d", "counter")
    scope.drop_family(histogram)
    scope.family(f"h_{suffix}", "d", "gauge")
    with pytest.raises(InvalidArg, match="Family name already exists with different type"):
        scope.family("h", "d", "histogram")
    scope.family("h", "d", "counter")
