"""Image files in, labels out: decodes, resizes, and has the model `digits` classify all images of a batch in one call.

Pillow reads the files where it is installed, else png.py beside this file, which knows PNG alone.
"""

import io

import numpy as np
import png
import triton_python_backend_utils as pb_utils

try:
    from PIL import Image
except ImportError:
    Image = None
else:
    Image.MAX_IMAGE_PIXELS = png.MAX_PIXELS

SIZE, INK = 8, 16.0


def decode(data):
    """Return the pixels of an image file, uint8 (height, width, 3). Raises ValueError."""
    if Image is None:
        return png.read(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > png.MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, the limit is {png.MAX_PIXELS}")
            paper = Image.new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
            return np.asarray(paper.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def prepare(pixels):
    """Return what the digits were trained on: (1, 8, 8), 0 for white paper to 16 for black ink."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    ink = (255 - grey) * (INK / 255)
    return shares(ink.shape[0]) @ ink @ shares(ink.shape[1]).T


def shares(size):
    """How much each of ``size`` pixels is of each of the SIZE cells, as a matrix: the mean over an area."""
    edges = np.linspace(0, size, SIZE + 1)
    low, high = edges[:-1, None], edges[1:, None]
    at = np.arange(size)
    part = np.clip(np.minimum(at + 1, high) - np.maximum(at, low), 0, None)
    return (part / part.sum(axis=1, keepdims=True)).astype(np.float32)


class TritonPythonModel:
    def execute(self, requests):
        images, owners, errors = [], [], {}
        for n, request in enumerate(requests):
            files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            try:
                images += [prepare(decode(data)) for data in files[:, 0]]
                owners.append((n, len(files)))
            except ValueError as error:
                # The other requests of the batch are answered.
                errors[n] = pb_utils.TritonError(
                    f"the image can not be read: {error}", pb_utils.TritonError.INVALID_ARG
                )
        responses = [pb_utils.InferenceResponse(error=errors[n]) if n in errors else None for n in range(len(requests))]
        if images:
            scores = self.classify(np.stack(images)[:, None])
            at = 0
            for n, count in owners:
                responses[n] = self.answer(scores[at : at + count])
                at += count
        return responses

    @staticmethod
    def classify(images):
        """Ask the other model. It may have its own instances, batches and versions."""
        answer = pb_utils.InferenceRequest(
            model_name="digits", requested_output_names=["scores"], inputs=[pb_utils.Tensor("image", images)]
        ).exec()
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
        return pb_utils.get_output_tensor_by_name(answer, "scores").as_numpy()

    @staticmethod
    def answer(scores):
        labels = np.array([[str(digit).encode()] for digit in scores.argmax(axis=1)], object)
        confidence = scores.max(axis=1, keepdims=True).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("label", labels), pb_utils.Tensor("confidence", confidence)])
