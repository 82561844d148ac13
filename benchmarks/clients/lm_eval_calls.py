"""lm-evaluation-harness over HTTP against the model in process, item by item.

Three tasks are made from files of shared data, in a temporary folder. Requests are scored by
`local-completions` with the server's tokenizer; `reference.py` scores the same ids in process. A
log-likelihood may differ by 1e-4, whether the continuation is the likeliest not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

TASKS: dict[str, dict[str, Any]] = {
    "copa": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    },
    "openbook_qa": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "lambada_openai": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{continuation}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
}
"""File → its task."""
NEAR = 1e-4
"""Nats by which a log-likelihood may differ."""


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--path", required=True, help="where the model is, for the reference")
    parser.add_argument("--python", required=True, help="the interpreter that has gptjax")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the files")
    parser.add_argument("--items", type=int, default=50, help="documents of each task")
    return parser.parse_args()


def write_tasks(folder: Path, data: Path) -> None:
    """Writes a file for each task. YAML reads JSON."""
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(data / f"{name}.jsonl")}}
        whole = {"task": f"local_{name}", "dataset_path": "json", "dataset_kwargs": files}
        whole |= {"test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))


def scored(flags: argparse.Namespace, folder: Path) -> tuple[list[dict], dict[str, Any]]:
    """Every request that the harness scored, and its results."""
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    items: list[dict[str, Any]] = []

    class Recording(LocalCompletionsAPI):
        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> Any:
            found = super()._loglikelihood_tokens(requests, **more)
            for ((context, continuation), before, after), one in zip(requests, found, strict=True):
                items.append(
                    {
                        "context": context,
                        "continuation": continuation,
                        "before": before,
                        "after": after,
                        "loglikelihood": float(one[0]),
                        "likeliest": bool(one[1]),
                    }
                )
            return found

    model = Recording(
        model=flags.model,
        base_url=f"{flags.url}/v1/completions",
        tokenizer_backend="remote",
        num_concurrent=8,
        max_retries=1,
    )
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    names = [f"local_{name}" for name in TASKS]
    results = simple_evaluate(
        model, tasks=names, task_manager=tasks, limit=flags.items, bootstrap_iters=0
    )
    return items, results["results"]


def main() -> None:
    from tally import Tally

    flags = read_flags()
    tally, here = Tally("lm-eval", None), Path(__file__).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"HF_HOME": name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        write_tasks(folder, flags.data)
        items, results = scored(flags, folder)
        (folder / "items.json").write_text(json.dumps(items))
        told = [flags.python, str(here / "reference.py"), flags.path, str(folder / "items.json")]
        made = json.loads(subprocess.run(told, check=True, capture_output=True, text=True).stdout)
    far = 0.0
    for item, one in zip(items, made, strict=True):
        difference = abs(item["loglikelihood"] - one["loglikelihood"])
        far = max(far, difference)
        short = {k: item[k] for k in ("continuation", "loglikelihood", "likeliest")}
        tally.check(difference <= NEAR, f"log-likelihood of {short} is {one}")
        tally.check(item["likeliest"] == one["likeliest"], f"likeliest: {short} is {one}")
        tally.check(one["same_ids"], f"ids of {short}")
    for task, scores in results.items():
        print(f"  {task}: { ({k: v for k, v in scores.items() if isinstance(v, float)}) }")
    likeliest = sum(one["likeliest"] for one in made)
    print(f"  {len(items)} items, {likeliest} likeliest, largest difference {far:.1e} nats")
    tally.end()


if __name__ == "__main__":
    main()
