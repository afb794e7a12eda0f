#!/usr/bin/env python3
"""Export Keras' classifiers through tf2onnx, with TensorFlow's logits and input gradients.

    python crates/doorward-engine/tests/exports/make_keras.py /tmp/exports                    what is not there yet
    python crates/doorward-engine/tests/exports/make_keras.py /tmp/exports --only MobileNet   names that hold this

Needs tensorflow-cpu, keras 3, tf2onnx, onnxruntime and safetensors, in an environment of their own.
Files are as make.py describes; `input` is [2, H, W, C], or [2, C, H, W] for `nchw` in the name
(tf2onnx --inputs-as-nchw). `export` is Keras' own `model.export(format="onnx")`. The classifiers end
in logits, but for the one called `softmax`. EfficientNetB0 is not here: tf2onnx 1.17 leaves its
normalisation's constants undefined.
"""
import argparse, os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
import numpy as np
import onnxruntime as ort
import tensorflow as tf
import tf2onnx
from keras import applications, layers

from common import end, missing, seed, write

LABELS = 10
LIMIT = 1e-4                                 # onnxruntime in single precision, of the largest magnitude


def application(name, size, **options):
    def build():
        return getattr(applications, name)(weights=None, classes=LABELS, classifier_activation=None, input_shape=(size, size, 3), **options)
    return build, size


def gelu(x):                                 # the exact one is an Erfc by now, which tf2onnx 1.17 does not know
    return keras.activations.gelu(x, approximate=True)


def small(final=None):                       # what people write themselves
    def build():
        return keras.Sequential([
            keras.Input((28, 28, 3)), layers.Rescaling(1 / 127.5, offset=-1), layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(), layers.LeakyReLU(negative_slope=.1), layers.MaxPooling2D(3, 2, padding="same"),
            layers.SeparableConv2D(16, 3, padding="same", activation="elu"), layers.AveragePooling2D(2, padding="same"),
            layers.Conv2D(16, 3, strides=2, activation=gelu), layers.SpatialDropout2D(.2), layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Conv2D(12, 3, padding="same", dilation_rate=2), layers.GroupNormalization(4), layers.PReLU(shared_axes=[1, 2]),
            layers.GlobalMaxPooling2D(), layers.Dense(24, activation="selu"), layers.LayerNormalization(), layers.Dropout(.5),
            layers.Dense(LABELS, activation=final)])
    return build, 28


class Positions(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.table


def attention():                             # patches, learnt positions, Keras' attention layer
    def build():
        source = keras.Input((24, 24, 3))
        x = layers.Conv2D(32, 6, strides=6)(source)
        x = layers.Reshape((16, 32))(x)
        x = Positions()(x)
        for _ in range(2):
            h = layers.LayerNormalization(epsilon=1e-6)(x)
            x = x + layers.MultiHeadAttention(4, 8)(h, h)
            h = layers.LayerNormalization(epsilon=1e-6)(x)
            x = x + layers.Dense(32)(layers.Dense(64, activation=gelu)(h))
        return keras.Model(source, layers.Dense(LABELS)(layers.GlobalAveragePooling1D()(x)))
    return build, 24


ARCHITECTURES = {
    "keras_small": small(),
    "keras_softmax": small("softmax"),
    "keras_attention": attention(),
    "MobileNetV2": application("MobileNetV2", 32, alpha=.35),
    "VGG16": application("VGG16", 32),
    "ResNet50": application("ResNet50", 32),
    "MobileNetV3Small": application("MobileNetV3Small", 32, alpha=.75, minimalistic=False),
    "EfficientNetV2B0": application("EfficientNetV2B0", 32, include_preprocessing=False),
    "MobileNet": application("MobileNet", 32, alpha=.25),
    "DenseNet121": application("DenseNet121", 32),
    "Xception": application("Xception", 71),
    "InceptionV3": application("InceptionV3", 75),
    "NASNetMobile": application("NASNetMobile", 32),
}
# tf2onnx writes operator set 15 unless told otherwise.
FORMS = {
    "MobileNetV2": ["tf2onnx-13", "tf2onnx-15", "tf2onnx-18", "nchw-15", "export"],
    "MobileNetV3Small": ["tf2onnx-13", "tf2onnx-15", "tf2onnx-18"],
    "ResNet50": ["tf2onnx-15", "export"],
    "keras_attention": ["tf2onnx-13", "tf2onnx-15", "tf2onnx-18", "export"],
    "keras_small": ["tf2onnx-13", "tf2onnx-15", "tf2onnx-18", "nchw-15", "export"],
}


def every(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every(layer)


def randomise(model, size, rng, high):
    """Nothing stays at zero, one or a constant that training would move; norms see real statistics."""
    for layer in every(model):
        if isinstance(layer, layers.Normalization):
            continue
        for weight in layer.trainable_weights:
            value = weight.numpy()
            if value.size > 1 and value.std() > 1e-3:
                continue
            bias = weight.name in ("beta", "bias")
            weight.assign(rng.uniform(*((-.2, .2) if bias else (.5, 1.5)), value.shape))
    norms = [layer for layer in every(model) if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = .7
    if norms:
        for _ in range(10):
            model(rng.uniform(0, high, (16, size, size, 3)).astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        variance = norm.moving_variance.numpy()
        variance = np.maximum(variance, .05 * variance.mean())       # a channel that is nearly off
        norm.moving_mean.assign(norm.moving_mean.numpy() + .2 * np.sqrt(variance) * rng.standard_normal(variance.shape))
        norm.moving_variance.assign(variance * rng.uniform(.7, 1.4, variance.shape))


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


def references(build, model, size, rng, high):
    keras.config.set_dtype_policy("float64")
    double = build()
    double.set_weights([weight.astype("float64") if weight.dtype.kind == "f" else weight for weight in model.get_weights()])
    keras.config.set_dtype_policy("float32")
    def graph(model, dtype):
        @tf.function(input_signature=[tf.TensorSpec((2, size, size, 3), dtype), tf.TensorSpec((2, LABELS), dtype)])
        def run(x, cotangent):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x, training=False)
                total = tf.reduce_sum(y * cotangent)
            return y, tape.gradient(total, x)
        return lambda x, cotangent: [tensor.numpy() for tensor in run(tf.constant(x, dtype), tf.constant(cotangent, dtype))]
    single, double = graph(model, tf.float32), graph(double, tf.float64)
    best = None
    for _ in range(30):
        x = rng.uniform(0, high, (2, size, size, 3)).astype("float32")
        cotangent = rng.standard_normal((2, LABELS)).astype("float32")
        y, gradient = double(x, cotangent)
        near = x + high * 1e-6 * rng.standard_normal(x.shape)
        noise = max(relative(single(x, cotangent)[1], gradient), relative(double(near, cotangent)[1], gradient))
        if best is None or noise < best[0]:
            best = noise, dict(input=x, logits=y, cotangent=cotangent, gradient=gradient)
        if noise < 1e-4:
            break
    return best[0], {name: np.ascontiguousarray(tensor, "float32") for name, tensor in best[1].items()}


def export(model, size, path, form):
    kind, _, opset = form.partition("-")
    if kind == "export":
        return model.export(path, format="onnx", verbose=False)
    signature = [tf.TensorSpec((None, size, size, 3), tf.float32, name="input")]
    function = tf.function(lambda x: model(x, training=False))
    nchw = ["input"] if kind == "nchw" else None
    tf2onnx.convert.from_function(function, input_signature=signature, opset=int(opset), inputs_as_nchw=nchw, output_path=str(path))


def check(path, tensors):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: tensors["input"]})[0]
    error = relative(logits, tensors["logits"])
    assert error < LIMIT, f"logits off by {error:.1e}"


def make(folder, architecture, only, force):
    names = {f"{architecture}-{form}": form for form in FORMS.get(architecture, ["tf2onnx-15"])}
    wanted = missing(names, folder, only, force)
    if not wanted:
        return []
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed(architecture))
    rng = np.random.default_rng(seed(architecture))
    build, size = ARCHITECTURES[architecture]
    model = build()
    # Models that rescale by themselves take pixels as they are.
    high = 255. if any(isinstance(layer, layers.Rescaling) for layer in every(model)) else 1.
    randomise(model, size, rng, high)
    noise, tensors = references(build, model, size, rng, high)
    print(f"{architecture}: {model.count_params() / 1e6:.1f} M parameters, gradient uncertain by {noise:.0e}", flush=True)

    def one(name, path):
        form, own = names[name], tensors
        if form.startswith("nchw"):
            own = tensors | {key: np.ascontiguousarray(tensors[key].transpose(0, 3, 1, 2)) for key in ("input", "gradient")}
        export(model, size, path, form)
        check(path, own)
        return own

    return write(wanted, folder, one)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for architecture in ARCHITECTURES:
        failed += make(arguments.folder, architecture, arguments.only, arguments.force)
    end(failed)


if __name__ == "__main__":
    main()
