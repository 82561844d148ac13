"""GGUF models that are split into several files, as `llama-gguf-split` writes them: `open_whole`.

The first part has the metadata and perhaps tensors, the others have tensors alone. All are named
NAME-00001-of-00003.gguf, and every part says its number and how many there are.
"""

from __future__ import annotations

import re
from pathlib import Path

from gptjax.core.config import require
from gptjax.formats.gguf_file import File, Tensor, open_file

MOST = 1 << 12
"""Maximum number of parts."""


def open_whole(path: Path | str) -> File:
    """Reads the header of a file, and if it is a part of a split model, of all parts.

    Args:
      path: the file, or any part.

    Raises:
      ConfigError: a part is absent, damaged, or of another model.
    """
    file = open_file(path)
    count = file.get("split.count", int, 1)
    if count <= 1:
        return file
    named = re.fullmatch(r"(.*)-\d{5}-of-\d{5}\.gguf", file.path.name)
    require(
        named is not None and count <= MOST,
        f"{path} is part {file.get('split.no', int, 0) + 1} of {count} of a split model; its parts"
        f" are found by their names, NAME-00001-of-{count:05}.gguf: give it back its name.",
    )
    names = [f"{named[1]}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    lost = [name for name in names if not (file.path.parent / name).is_file()]
    require(
        not lost,
        f"{path} is a part of a split model of {count}, and {', '.join(lost[:5])} is not beside it;"
        " get all parts.",
    )
    parts = [open_file(file.path.parent / name) for name in names]
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        said = part.get("split.no", int, -1), part.get("split.count", int, -1)
        require(
            said == (number, count),
            f"{part.path} says that it is part {said[0] + 1} of {said[1]}; it should be part"
            f" {number + 1} of {count}: get it again.",
        )
        for name, tensor in part.tensors.items():
            require(
                name not in tensors,
                f"{part.path} repeats {name!r} of another part; get the parts again.",
            )
            tensors[name] = tensor._replace(part=part.path)
    total = parts[0].get("split.tensors.count", int, len(tensors))
    require(
        total == len(tensors),
        f"{path} and its other parts have {len(tensors)} tensors, and should have {total}; get them"
        " again.",
    )
    return File(parts[0].path, parts[0].fields, tensors)
