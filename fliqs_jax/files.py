"""Writing a file all or nothing. What is in it is the caller's business."""

import os
import pathlib


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces a file's content in one step, even if killed or unplugged meanwhile.

    Args:
      path: the file, old or new; its folder must exist.
      text: the new content, written as UTF-8.
    """
    path = pathlib.Path(path)
    # In the same folder, since a rename between file systems is a copy.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
