"""``cuml.fil`` as release 25.10 has it, over the stand-in of nvforest, which that release did not have."""

from __future__ import annotations

from typing import Any

# Not imported by its name: to the server it must seem absent.
from cuml import forests


class ForestInference:
    def __init__(
        self, *, treelite_model: Any = None, handle: Any = None, output_type: str | None = None, verbose: bool = False,
        is_classifier: bool = False, layout: str = "depth_first", default_chunk_size: int | None = None,
        align_bytes: int | None = None, precision: str | None = "single", device_id: int | None = None,
    ) -> None:  # fmt: skip
        assert output_type == "cupy"
        self.is_classifier, self.layout, self.default_chunk_size = is_classifier, layout, default_chunk_size
        self._forest = forests._Forest(treelite_model, device_id, layout, precision)
        forests.opened.append(self)

    def num_outputs(self) -> int:
        return int(self._forest.width)

    def optimize(self) -> Any:
        raise NotImplementedError

    def predict(
        self, X: Any, *, preds: Any = None, chunk_size: int | None = None, threshold: float | None = None
    ) -> Any:  # fmt: skip
        assert not self.is_classifier, "it would give class numbers"
        return self._forest.predict("predict", X, chunk_size or self.default_chunk_size)
