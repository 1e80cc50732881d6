"""Writing a file all or nothing. What is in it is the caller's business."""

import os
import pathlib


def replace_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces a file's content in one step, even if killed or unplugged meanwhile.

    Args:
      path: the file, old or new; its folder must exist.
      data: the new content.
    """
    path = pathlib.Path(path)
    # In the same folder, since a rename between file systems is a copy.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """As `replace_bytes`, for text, which is written as UTF-8."""
    replace_bytes(path, text.encode("utf-8"))
