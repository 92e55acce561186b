"""Opens plans on the two stand-ins and runs exact batches: what the TensorRT backend makes of them, without a server.

``Opened.run`` takes and gives numpy arrays. Knows the backend and the native engine; no protocol.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from tests.helpers import standin_cuda, trt_plans
from tests.helpers.trt_plans import write
from triton_fast import config as configs
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.cuda import driver
from triton_fast._native.ort import drive
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Host
from triton_fast.config import io_specs
from triton_fast.scheduling.runtime import instance_specs
from triton_fast.types import DataType

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
OF_NUMPY = {np.dtype(kind): DataType[name] for name, kind in NUMPY.items()}
GPUS = (0, 1)


def context(model_dir: Path, gpus: Sequence[int] = GPUS, **settings: str) -> LoadContext:
    """Read, complete and check the config, as the repository does on a machine with these GPUs."""
    from triton_fast.backends.tensorrt import TensorRtBackend

    parsed = configs.read_model_config(model_dir, strict=False)
    configs.normalize(parsed.config, cpu_count=2, gpus=gpus)
    configs.validate(parsed.config, model_dir, gpus=gpus, io=False)
    plain = {key.replace("_", "-"): value for key, value in settings.items()}
    made = LoadContext(
        parsed.config.name,
        1,
        model_dir,
        model_dir / "1",
        parsed.config,
        plain,
        given=parsed.given,
        host=Host(gpus=tuple(gpus), use_gpu=driver.enter),
    )
    TensorRtBackend().complete_config(made)
    configs.normalize(made.config, cpu_count=2, gpus=gpus)
    configs.validate(made.config, model_dir, gpus=gpus)
    return made


@dataclass
class Opened:
    model: Any
    handle: ModelHandle
    instances: list[Any]
    config: Any

    @property
    def instance(self) -> Any:
        return self.instances[0]

    def run(self, *requests: Mapping[str, np.ndarray], of: int = 0, **options: Any) -> list[Any]:
        """Execute one batch on instance ``of``; each answer is {name: array}, or the error."""
        made = [
            {key: (OF_NUMPY[value.dtype], value.shape, value.tobytes()) for key, value in request.items()}
            for request in requests
        ]
        return [
            answer if isinstance(answer, Exception) else {
                name: np.frombuffer(data, NUMPY[DataType(dtype).name]).reshape(shape)
                for name, (dtype, shape, data, _) in answer.items()
            }
            for answer in drive.run_batch(self.instances[of], self.handle, made, **options)
        ]  # fmt: skip

    def counted(self, *names: str) -> tuple[int, ...]:
        found = self.instance.counters()
        return tuple(found[name] for name in names)


class Opener:
    """Opens models and closes them all in the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[Opened] = []

    def __call__(self, plan: bytes, config: str = "", *, gpus: Sequence[int] = (0,), **settings: str) -> Opened:
        from triton_fast.backends.tensorrt import TensorRtBackend

        folder = write(self.root, plan, config if "backend:" in config else f'backend: "tensorrt"\n{config}')
        made = context(folder, gpus, **settings)
        model = TensorRtBackend().load(made)
        try:
            instances = [model.create_instance(spec) for spec in instance_specs(made.config)]
        except BaseException:
            model.close()
            raise
        inputs, outputs = io_specs(made.config)
        handle = ModelHandle(made.name, 1, made.config.max_batch_size, inputs, outputs)
        found = Opened(model, handle, instances, made.config)
        self.opened.append(found)
        return found

    def close(self) -> None:
        for one in self.opened:
            one.model.close()
        self.opened.clear()


class StandIns(Opener):
    """With the two stand-ins themselves."""

    def __init__(self, root: Path, cuda: standin_cuda.StandIn, trt: ModuleType) -> None:
        super().__init__(root)
        self.cuda = cuda
        self.trt = trt


@contextmanager
def on_stand_ins(root: Path) -> Iterator[StandIns]:
    """Have both in this process, and models under ``root``."""
    with standin_cuda.opened() as cuda, trt_plans.installed() as trt:
        opener = StandIns(root, cuda, trt)
        try:
            yield opener
        finally:
            opener.close()
            gc.collect()  # contexts give back their memory while there is a device
