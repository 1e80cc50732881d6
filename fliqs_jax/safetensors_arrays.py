"""Reading a safetensors file into numpy arrays, bfloat16 and float8 ones too.

Which `safetensors.numpy` does not do. What the arrays are is the caller's business.
"""

import os

import ml_dtypes
import numpy as np

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(file: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name, in the types of the file.

    Raises:
      ValueError: if it is damaged, or an array is of a type that numpy cannot hold.
    """
    import safetensors  # 0.1 s, which few need

    with open(file, "rb") as stream:
        data = stream.read()
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is no whole safetensors file ({error}): fetch or save it again"
        ) from error
    arrays = {}
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise ValueError(
                f"{file}: {name!r} is of type {tensor['dtype']}, not one of "
                f"{', '.join(_DTYPES)}: convert it"
            )
        arrays[name] = np.ndarray(tensor["shape"], dtype, buffer=tensor["data"])
    return arrays
