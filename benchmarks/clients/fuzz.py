"""schemathesis over /openapi.json: bodies that fit the document, and bodies that do not.

Any answer of 5xx, a status, media type or body that the document does not promise, and a wrong body
that was taken, is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tally import Tally

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--examples", type=int, default=20, help="random bodies of each route")
    flags = parser.parse_args()
    tally = Tally("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        told = [
            str(Path(sys.executable).parent / "schemathesis"),
            *("run", f"{flags.url}/openapi.json", "--no-color", "--no-shrink"),
            *("--max-examples", str(flags.examples), "--seed", "1", "--workers", "2"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--continue-on-failure", "--generation-database", "none"),
            *("--report", "json", "--report-json-path", f"{folder}/report.json"),
        ]
        ended = subprocess.run(told, cwd=folder, capture_output=True, text=True, env=os.environ)
        report = json.loads((Path(folder) / "report.json").read_text())
    cases, operations = report["test_cases"], report["operations"]
    tally.checks = cases["generated"]
    tally.errors = cases["unique_failures"] + cases["errored"] + operations["errored"]
    if tally.errors or not report["complete"]:
        print(ended.stdout[-6000:], ended.stderr[-2000:], file=sys.stderr)
    tally.check(report["complete"], f"the run stopped: {report['stop_reason']}")
    tally.check(operations["tested"] == operations["total"], f"tested {operations}")
    tally.end()


if __name__ == "__main__":
    main()
