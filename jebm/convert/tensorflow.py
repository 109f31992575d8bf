"""Reads TensorFlow object checkpoints as arrays, without TensorFlow.

A checkpoint ``NAME`` is an index ``NAME.index``, a sorted table in LevelDB's format from keys to the place of each
tensor, and its data ``NAME.data-XXXXX-of-YYYYY``. Checksums are not verified; lengths are.
"""

import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from jebm import paths
from jebm.errors import ConfigError

__all__ = ["read"]

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def read(prefix: paths.Path) -> dict[str, np.ndarray]:
    """The variables of the checkpoint ``prefix``, by their path in the object, as ``block2/conv_1/kernel``.

    Raises:
        ConfigError: no such checkpoint, or files that are damaged or none of TensorFlow's.
    """
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise ConfigError(f"no TensorFlow checkpoint {prefix}: there is no {index.name}")
    try:
        entries = dict(_table(index.read_bytes()))
        num_shards = _fields(entries.pop(b"")).get(1, [1])[0]
        return {
            key.decode().removesuffix(SUFFIX): _tensor(prefix, entry, num_shards)
            for key, entry in entries.items()
            if key.decode().endswith(SUFFIX)
        }
    except FileNotFoundError as error:
        raise ConfigError(
            f"the TensorFlow checkpoint {prefix} lacks {pathlib.PurePath(error.filename or str(error)).name}"
        ) from None
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise ConfigError(f"{index} cannot be read as a TensorFlow checkpoint ({error})") from error


def _tensor(prefix: paths.Path, entry: bytes, num_shards: int) -> np.ndarray:
    fields = _fields(entry)
    shard, offset, size = (fields.get(number, [0])[0] for number in (3, 4, 5))
    dimensions = _fields(fields.get(2, [b""])[0]).get(2, [])
    shape = [_fields(dimension).get(1, [0])[0] for dimension in dimensions]
    dtype = np.dtype(DTYPES[fields[1][0]]).newbyteorder("<")
    data = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")
    with data.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{data} ends early")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(content) < FOOTER or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise ValueError("it does not end as a table does")
    index = _handle(content, len(content) - FOOTER, skip=1)  # after that of a block that is not used
    for _, handle in _block(content, *index):
        yield from _block(content, *_handle(handle, 0, skip=0))


def _handle(content: bytes, position: int, skip: int) -> tuple[int, int]:
    """(offset, size) of a block: the handle at ``position``, after ``skip`` others."""
    for _ in range(skip + 1):
        offset, position = _varint(content, position)
        size, position = _varint(content, position)
    return offset, size


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = content[offset : offset + size]
    if content[offset + size] != 0:
        raise ValueError("a compressed block")
    (num_restarts,) = struct.unpack("<I", block[-4:])
    end, position, key = len(block) - 4 * (num_restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _fields(message: bytes) -> dict[int, list]:
    """A protocol buffer's fields by number."""
    fields: dict[int, list] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value: int | bytes
        if tag & 7 == 0:
            value, position = _varint(message, position)
        elif tag & 7 == 2:
            length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
        elif tag & 7 in (1, 5):
            width = 8 if tag & 7 == 1 else 4
            value, position = message[position : position + width], position + width
        else:
            raise ValueError(f"a field of type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields
