"""The Keras example's network in Keras 3 on TensorFlow, in a separate process, to compare with.

Written for the benchmark after the example's description (A. R. Gosthipaty, keras.io 2022), each block with separate
weights. Run by a Python that has Keras; `KerasNetwork` in `keras_process.py` talks to it over its standard input and
output: a line `mode call count` gets a line with the seconds of each call.

Modes: `graph` and `xla` (float32), `mixed` (Keras' mixed_bfloat16, graph); with `-exact` behind it GELU is exact,
else the tanh approximation, which is what `keras.ops.gelu` computes today. Calls: `step`, `batch`, `one`.
"""

import json
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

DIM, GRID, BATCH = 256, 12, 128
GELU = {"tanh": keras.ops.gelu, "exact": keras.activations.gelu}


class ClassToken(layers.Layer):
    """A trainable row of zeros, for every image of the batch."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, DIM), initializer="zeros", name="token")

    def call(self, patches):
        return ops.repeat(ops.cast(self.token, patches.dtype), ops.shape(patches)[0], axis=0)


def norm(x):
    return layers.LayerNormalization(epsilon=1e-6)(x)


def squeeze_excite(x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Dense(DIM // 8, activation="relu", use_bias=False)(scale)
    scale = layers.Dense(DIM, activation="sigmoid", use_bias=False)(scale)
    return layers.Multiply()([x, scale])


def trunk_block(x, gelu):
    y = layers.Conv2D(DIM, 1, activation=gelu)(norm(x))
    y = layers.Conv2D(DIM, 3, padding="same", activation=gelu)(y)
    y = layers.Conv2D(DIM, 1)(squeeze_excite(y))
    return layers.Add()([x, y])


def attention_pooling(patches, gelu):
    token = ClassToken()(patches)
    tokens = norm(layers.Concatenate(axis=1)([token, patches]))
    attended = layers.MultiHeadAttention(num_heads=1, key_dim=DIM, dropout=0.2)(tokens[:, :1], tokens, tokens)
    x = norm(norm(layers.Add()([token, attended])))
    y = layers.Dropout(0.2)(layers.Dense(DIM, activation=gelu)(x))
    return layers.Add()([x, layers.Dense(DIM, activation=gelu)(y)])


def network(gelu):
    image = keras.Input((48, 48, 3))
    x = layers.Conv2D(DIM // 2, 3, strides=2, padding="same", activation=gelu)(image)
    x = layers.Conv2D(DIM, 3, strides=2, padding="same", activation=gelu)(x)
    x = trunk_block(trunk_block(x, gelu), gelu)
    x = attention_pooling(layers.Reshape((GRID * GRID, DIM))(x), gelu)
    logits = layers.Dense(10, dtype="float32")(layers.Reshape((DIM,))(x))
    return keras.Model(image, logits)


class Mode:
    """The network, compiled in one of Keras' ways."""

    def __init__(self, name):
        name, _, gelu = name.partition("-")
        keras.mixed_precision.set_global_policy("mixed_bfloat16" if name == "mixed" else "float32")
        xla = name == "xla"
        self.model = network(GELU[gelu or "tanh"])
        self.model.compile(
            keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=xla,
        )
        random = np.random.default_rng(0)
        self.images = tf.constant(random.random((BATCH, 48, 48, 3), "float32"))
        self.first = self.images[:1]
        self.labels = tf.constant(random.integers(0, 10, BATCH))
        self.predict = tf.function(lambda images: self.model(images, training=False), jit_compile=xla)

    def step(self):
        float(self.model.train_on_batch(self.images, self.labels))

    def batch(self):
        self.predict(self.images).numpy()

    def one(self):
        self.predict(self.first).numpy()


def main():
    threads = int(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    modes = {}
    about = {"keras": keras.__version__, "tensorflow": tf.__version__, "parameters": network("gelu").count_params()}
    print("ready " + json.dumps(about), flush=True)
    for line in sys.stdin:
        name, call, count = line.split()
        if name not in modes:
            modes[name] = Mode(name)
        times = []
        for _ in range(int(count)):
            started = time.perf_counter()
            getattr(modes[name], call)()
            times.append(time.perf_counter() - started)
        print("seconds " + json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
