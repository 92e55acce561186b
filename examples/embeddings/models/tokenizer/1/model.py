"""Texts to numbers of tokens, for all requests of a batch together."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from bpe import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        content = json.loads((folder / "tokens.json").read_text())
        self.tokenizer = Tokenizer(content["tokens"], [tuple(pair) for pair in content["merges"]])
        self.length = content["length"]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        # Bytes that are not UTF-8 are no reason to fail the whole request.
        rows = [self.tokenizer.encode(text.decode("utf-8", "replace"), self.length) for text in texts[:, 0]]
        ids = np.array(rows, np.int32).reshape(len(rows), self.length)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ids", ids)])
