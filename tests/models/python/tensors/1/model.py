"""Tensors: construction, refusals, views, DLPack both ways; what was found comes back as JSON."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def failure(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except TypeError:
        return "TypeError"  # the words are those of whatever checks the arguments
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "nothing was raised"


class Exported:
    """An object with the two methods of DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def made(array):
    tensor = pb_utils.Tensor("T", array)
    again = tensor.as_numpy()
    return [tensor.name(), list(tensor.shape()), tensor.is_cpu(), str(again.dtype), repr(again)]


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(getattr(self, name)(request))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])

    def members(self, request):
        wanted = ("as_numpy", "from_dlpack", "is_cpu", "name", "shape", "to_dlpack", "triton_dtype")
        return [name for name in wanted if not hasattr(pb_utils.Tensor, name)]

    def types(self, request):
        return {kind: made(np.array([[1, 0]], kind)) for kind in "?bBhHiIqQefd"}

    def type_number(self, request):
        return int(pb_utils.get_input_tensor_by_name(request, "DATA").triton_dtype())

    def texts(self, request):
        arrays = {
            "object of bytes": np.array([b"a", b"\x00\xff"], dtype=object),
            "object of str": np.array(["a", "h\u00e9"], dtype=object),
            "bytes": np.array([b"a", b"bc"]),
            "object of int": np.array([1, None, 2.5], dtype=object),
            "empty": np.array([], dtype=object),
            "bytes with nul": np.array([b"a\x00", b"\x00"]),
            "matrix": np.array([["a", "b"], ["c", "d"]], dtype=object),
            "column": np.array([["a", "b"], ["c", "d"]], dtype=object)[:, 0],
        }
        return {name: made(array) for name, array in arrays.items()}

    def refused(self, request):
        arrays = {
            "complex": np.zeros(1, "c8"), "datetime": np.zeros(1, "M8[s]"), "record": np.zeros(1, [("a", "i4")]),
            "void": np.zeros(1, "V4"), "longdouble": np.zeros(1, "g"), "list": [1, 2], "none": None, "number": 1,
        }
        found = {name: failure(pb_utils.Tensor, "T", array) for name, array in arrays.items()}
        found["str"] = failure(pb_utils.Tensor, "T", np.array(["a"]))
        return {**found, "empty name": failure(pb_utils.Tensor, "", np.zeros(1))}

    def big_endian(self, request):
        return failure(pb_utils.Tensor, "T", np.arange(3, dtype=">i4"))

    def odd_layouts(self, request):
        base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
        return {
            "transposed": made(base.T), "strided": made(base[:, ::2, ::-1]),
            "fortran": made(np.asfortranarray(base[0])),
            "broadcast": made(np.broadcast_to(np.int32(7), (2, 2))), "sliced": made(base[1:, 1:]),
        }

    def empty(self, request):
        return [made(np.zeros(shape, np.float32)) for shape in ((0,), (2, 0), (0, 3))]

    def scalar(self, request):
        return made(np.array(5, np.int32))

    def as_numpy_again(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "DATA")
        one, other = tensor.as_numpy(), tensor.as_numpy()
        return [np.shares_memory(one, other), one.flags.c_contiguous, one.tolist()]

    def writable(self, request):
        view = pb_utils.get_input_tensor_by_name(request, "DATA").as_numpy()
        return bool(view.flags.writeable)

    def own_array_shared(self, request):
        array = np.arange(4, dtype=np.float32)
        tensor = pb_utils.Tensor("T", array)
        array[0] = 9
        return [np.shares_memory(tensor.as_numpy(), array), tensor.as_numpy().tolist()]

    def strided_array_shared(self, request):
        array = np.arange(8, dtype=np.float32)
        tensor = pb_utils.Tensor("T", array[::2])
        array[0] = 9
        return [np.shares_memory(tensor.as_numpy(), array), tensor.as_numpy().tolist()]

    def dlpack_out(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "DATA")
        view = np.from_dlpack(tensor)
        return [view.tolist(), np.shares_memory(view, tensor.as_numpy()), list(tensor.__dlpack_device__())]

    def dlpack_capsule(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "DATA")
        capsule = tensor.to_dlpack()
        again = pb_utils.Tensor.from_dlpack("T", capsule)
        shared = np.shares_memory(again.as_numpy(), tensor.as_numpy())
        return [type(capsule).__name__, again.as_numpy().tolist(), shared]

    def dlpack_capsule_twice(self, request):
        capsule = pb_utils.Tensor("T", np.arange(2, dtype=np.int8)).to_dlpack()
        pb_utils.Tensor.from_dlpack("T", capsule)
        return failure(pb_utils.Tensor.from_dlpack, "T", capsule)

    def dlpack_in(self, request):
        found = {}
        for kind in "bBhHiIqQefd?":
            array = np.array([[1, 0, 1]], kind)
            try:
                tensor = pb_utils.Tensor.from_dlpack("T", Exported(array))
            except Exception as error:
                found[kind] = f"{type(error).__name__}: {error}"
            else:
                found[kind] = [list(tensor.shape()), repr(tensor.as_numpy())]
        return found

    def dlpack_in_shares(self, request):
        array = np.arange(4, dtype=np.float32)
        return bool(np.shares_memory(pb_utils.Tensor.from_dlpack("T", Exported(array)).as_numpy(), array))

    def dlpack_refused(self, request):
        take = pb_utils.Tensor.from_dlpack
        return [
            failure(take, "T", np.arange(8)[::2]), failure(take, "T", np.arange(6).reshape(2, 3).T),
            failure(take, "T", 1), failure(take, "T", None), failure(take, "", np.arange(2)),
            failure(take, "T", np.zeros(2, "c8")),
        ]

    def dlpack_texts(self, request):
        return failure(pb_utils.get_input_tensor_by_name(request, "CASE").to_dlpack)

    def dlpack_empty(self, request):
        tensor = pb_utils.Tensor.from_dlpack("T", np.zeros((2, 0), np.float32))
        return [list(tensor.shape()), tensor.as_numpy().shape]

    def dlpack_outlives(self, request):
        def view():
            return np.from_dlpack(pb_utils.Tensor("T", np.arange(100, dtype=np.int64)))

        return int(view().sum())
