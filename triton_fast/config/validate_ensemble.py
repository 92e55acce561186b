"""Whether the steps of an ensemble form a graph in which every tensor is written once, reached and used.

Sees one config only: whether the members exist and fit is the repository's business.
Source: spec/model_config.md section 7.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from triton_fast.config.defaults import ENSEMBLE
from triton_fast.config.errors import ConfigError, did_you_mean


class _Tensor:
    """One ensemble tensor: who writes it and who depends on it."""

    __slots__ = ("after", "before", "ready", "written")

    def __init__(self) -> None:
        self.before: list[str] = []
        self.after: list[str] = []
        self.written = False
        self.ready = False


def check_ensemble(config: Any) -> None:
    """Check platform, forbidden blocks and wiring of an ensemble. Raises ConfigError with Triton's text."""
    name = config.name
    if config.platform != ENSEMBLE:
        raise ConfigError(
            f"ensemble scheduling cannot be set for model '{name}' whose platform is not {ENSEMBLE}",
            hint=f'write platform: "{ENSEMBLE}" and no backend',
        )
    if config.instance_group:
        raise ConfigError(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise ConfigError(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise ConfigError(f"model_warmup can not be specified for ensemble '{name}'")
    if not config.ensemble_scheduling.step:
        raise ConfigError(f"must specify 'step' for ensemble '{name}'")
    graph = _build(config)
    _spread(graph, _inputs(config, graph))
    _check_written(config, graph)


def _build(config: Any) -> dict[str, _Tensor]:
    graph: dict[str, _Tensor] = {}
    for index, step in enumerate(config.ensemble_scheduling.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise ConfigError(f"must specify '{field}' in step {index} of ensemble '{config.name}'")
        written = sorted(step.output_map.values())
        for tensor in written:
            node = graph.setdefault(tensor, _Tensor())
            if node.written:
                raise ConfigError(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble "
                    f"'{config.name}' step {index}"
                )
            node.written = True
        for tensor in sorted(step.input_map.values()):
            graph.setdefault(tensor, _Tensor()).after += written
            for result in written:
                graph[result].before.append(tensor)
    return graph


def _inputs(config: Any, graph: dict[str, _Tensor]) -> list[str]:
    names = []
    for tensor in config.input:
        if tensor.name not in graph:
            # The missing quote is Triton's.
            raise ConfigError(
                f"ensemble input '{tensor.name}' for ensemble {config.name}' is not used",
                hint=did_you_mean(tensor.name, graph),
            )
        names.append(tensor.name)
    return names


def _spread(graph: dict[str, _Tensor], start: Iterable[str]) -> None:
    queue = list(start)
    for name in queue:
        graph[name].ready = True
    while queue:
        for name in graph[queue.pop()].after:
            node = graph[name]
            if not node.ready and all(graph[source].ready for source in node.before):
                node.ready = True
                queue.append(name)


def _check_written(config: Any, graph: dict[str, _Tensor]) -> None:
    outputs = set()
    for tensor in config.output:
        node = graph.get(tensor.name)
        if node is None:
            raise ConfigError(
                f"ensemble output '{tensor.name}' for ensemble {config.name}' is not used",
                hint=did_you_mean(tensor.name, graph),
            )
        if not node.ready:
            text = f"output '{tensor.name}' for ensemble '{config.name}' is not written"
            cause = _first_cause(graph, tensor.name)
            if cause != tensor.name:
                text += f": at least one of its depending tensors, '{cause}', is not connected"
            raise ConfigError(text)
        outputs.add(tensor.name)
    for name, node in sorted(graph.items()):
        if name not in outputs and (not node.ready or not node.after):
            known = [other for other in graph if other != name]
            raise ConfigError(
                f"ensemble tensor '{name}' is unused in ensemble '{config.name}'", hint=did_you_mean(name, known)
            )


def _first_cause(graph: dict[str, _Tensor], name: str) -> str:
    """Walk back along tensors that are not ready; a loop in the wiring ends where it closes."""
    seen: set[str] = set()
    while True:
        waiting = [source for source in graph[name].before if not graph[source].ready and source not in seen]
        if not waiting:
            return name
        name = waiting[0]
        seen.add(name)
