"""What the tests of checkpoints save, and harm."""

import jax

CONFIG = {"model": {"n_layer": 3}}


def at(state, step):
    return state._replace(step=jax.numpy.full_like(state.step, step))


def save(checkpoints, state, steps_and_losses):
    for step, loss in steps_and_losses:
        checkpoints.save(at(state, step), CONFIG, '{"a": 1}', loss)
    checkpoints.wait()


def files_of(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
