"""llm-comply's tests of chats and of responses, against the schemas that it carries.

Two of its tests don't apply here, in either form: images, since the model reads text alone, and a
body without `model`, which it wants refused; this server takes that for its only model, as
llama.cpp's and vLLM's do. They have to end as is written here, or it is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tally import Tally, address

DIFFERS = {
    "image-input": "HTTP 400 (expected [200])",
    "error-handling": "HTTP 200 (expected [400, 422])",
}
"""Test → what it has to say."""


def main() -> None:
    url, model = address()
    tally = Tally("llm-comply")
    command = Path(sys.executable).parent / "llm-comply"
    for form in ("openai-chat", "open-responses"):
        flags = ["--format", form, "--json", "--timeout", "300", "-k", "none"]
        told = [str(command), *flags, "-u", f"{url}/v1", "-m", model]
        ended = subprocess.run(told, capture_output=True, text=True)
        for result in json.loads(ended.stdout)["results"]:
            name, errors = result["id"].removeprefix("chat-"), result.get("errors", [])
            if result["status"] == "skipped":
                print(f"  skipped: {form} {name}: {errors}")
            elif name in DIFFERS:
                tally.check(errors[:1] == [DIFFERS[name]], f"{form} {name}: {errors}")
            else:
                tally.check(result["status"] == "passed", f"{form} {name}: {errors}")
    tally.end()


if __name__ == "__main__":
    main()
