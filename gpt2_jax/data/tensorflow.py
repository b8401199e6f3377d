"""TensorFlow as it is used here: tf.data and TensorBoard's files, away from accelerators and without Keras."""

import contextlib
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """What is imported here imports no Keras, which takes 4 of the 11 seconds of processor that a run takes to start.

    TensorFlow imports it at its end, and goes on where that fails; TensorBoard, for the base of a class that is for
    users of Keras. `tf.keras` is there all the same, for whoever asks for it.
    """
    nothing = types.ModuleType("_keras")
    nothing.Callback = None
    absent = {"keras.src.optimizers": None, "tensorboard.plugins.hparams._keras": nothing}
    absent = {} if "keras" in sys.modules else {name: of for name, of in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with without_keras():
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")
