#!/usr/bin/env python3
"""LitServe on loopback, with assets/fashion-mnist/model.onnx behind POST /predict: litserve_server.py PORT

A form's part `content` holds the image, which Pillow decodes. `images.py` beside this file starts it.
"""
import io, sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from PIL import Image

MODEL = Path(__file__).resolve().parents[2] / "assets/fashion-mnist/model.onnx"


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.session = onnxruntime.InferenceSession(MODEL)

    def decode_request(self, request):
        picture = Image.open(io.BytesIO(request["content"].file.read())).convert("L")
        return np.asarray(picture)[None, None].astype(np.float32) / 255

    def predict(self, row):
        return self.session.run(None, {"input": row})[0]

    def encode_response(self, logits):
        return {"label": int(logits.argmax()), "logits": logits[0].tolist()}


if __name__ == "__main__":
    litserve.LitServer(Classifier(), accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
