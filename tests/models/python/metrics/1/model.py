"""Custom metrics of each kind, what they count, and each wrong use."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def failure(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except TypeError:
        return "TypeError"  # the words are those of whatever checks the arguments
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "nothing was raised"


class TritonPythonModel:
    def initialize(self, args):
        family, counter = pb_utils.MetricFamily, pb_utils.MetricFamily.COUNTER
        self.requests = family(name="suite_requests", description="requests seen", kind=counter)
        self.level = pb_utils.MetricFamily(name="suite_level", description="a level", kind=pb_utils.MetricFamily.GAUGE)
        self.seen = self.requests.Metric(labels={"model": "metrics", "version": "1"})
        self.high = self.level.Metric(labels={"which": "high"})
        self.high.set(3.5)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.seen.increment(1)
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(getattr(self, name)())
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])

    def values(self):
        return [type(self.seen.value()).__name__, self.high.value()]

    def gauge(self):
        metric = self.level.Metric(labels={"which": "changing"})
        found = [metric.value()]
        for change, value in ((metric.increment, 2), (metric.increment, -3.5), (metric.set, 7), (metric.set, -1)):
            change(value)
            found.append(metric.value())
        return found

    def counter_errors(self):
        metric = self.requests.Metric(labels={"use": "wrong"})
        found = [failure(metric.increment, -1), failure(metric.set, 1), metric.value()]
        return [*found, failure(metric.observe, 1) if hasattr(metric, "observe") else "has none"]

    def gauge_errors(self):
        return [failure(self.high.increment, "x"), hasattr(self.high, "set_value"), self.high.value()]

    def labels(self):
        return [
            failure(self.requests.Metric, labels=["a"]), failure(self.requests.Metric, labels={"a": 1}),
            failure(self.requests.Metric, labels={1: "a"}), failure(self.requests.Metric),
        ]

    def same_labels_twice(self):
        one, other = (self.requests.Metric(labels={"shared": "yes"}) for _ in range(2))
        one.increment(2)
        other.increment(3)
        return [one.value(), other.value()]

    def same_family_again(self):
        counter = pb_utils.MetricFamily.COUNTER
        again = pb_utils.MetricFamily(name="suite_requests", description="requests seen", kind=counter)
        return [again.Metric(labels={"model": "metrics", "version": "1"}).value() == self.seen.value()]

    def other_kind(self):
        make = pb_utils.MetricFamily
        return [failure(make, name="suite_requests", description="requests seen", kind=pb_utils.MetricFamily.GAUGE)]

    def other_description(self):
        make = pb_utils.MetricFamily
        return [failure(make, name="suite_requests", description="another", kind=pb_utils.MetricFamily.COUNTER)]

    def bad_names(self):
        make, kind = pb_utils.MetricFamily, pb_utils.MetricFamily.COUNTER
        return [failure(make, name=name, description="d", kind=kind) for name in ("", "a b", "1a")]

    def family_gone(self):
        family = pb_utils.MetricFamily(name="suite_gone", description="d", kind=pb_utils.MetricFamily.GAUGE)
        metric = family.Metric(labels={"a": "b"})
        del family
        return [failure(metric.increment, 1), failure(metric.value)]

    def histogram(self):
        if not hasattr(pb_utils.MetricFamily, "HISTOGRAM"):
            return "no histograms"
        family = pb_utils.MetricFamily(name="suite_times", description="t", kind=pb_utils.MetricFamily.HISTOGRAM)
        metric = family.Metric(labels={"a": "b"}, buckets=[0.1, 1.0, 10.0])
        self.kept = [family, metric]  # what nobody holds goes from the page
        for value in (0.05, 0.5, 5, 50):
            metric.observe(value)
        wrong = [failure(metric.increment, 1), failure(metric.set, 1), failure(metric.value)]
        make, labels = family.Metric, {"c": "d"}
        return [
            *wrong, failure(make, labels=labels), failure(make, labels=labels, buckets=(1, 2)),
            failure(make, labels=labels, buckets=[]), failure(make, labels=labels, buckets=[2, 1]),
            failure(self.level.Metric, labels=labels, buckets=[1]), failure(metric.observe, "x"),
        ]
