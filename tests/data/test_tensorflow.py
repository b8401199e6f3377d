import os
import subprocess
import sys

from gpt2_jax.data.tensorflow import tf

STARTED = """
import sys, gpt2_jax.training.loop
print("keras" in sys.modules)
from tensorflow.keras import layers
import tensorflow as tf
print(layers.Dense(3)(tf.ones((2, 2))).shape, tf.keras.callbacks.Callback.__name__)
"""


def test_tensorflow_sees_no_accelerator():
    assert {device.device_type for device in tf.config.get_visible_devices()} == {"CPU"}


def test_a_run_starts_without_keras_which_is_there_all_the_same():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["False", "(2, 3) Callback"], done.stderr
