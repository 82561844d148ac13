"""The language of a text, by the packaged model of py3langid (97 languages; Lui and Baldwin
2012)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gptjax.clean.records import Item
from gptjax.clean.stage import Outcome, Stage, dropped_item, needs
from gptjax.core.config import require
from gptjax.data.cleaning import Languages

SAMPLE = 4096
"""Characters from the middle of a text that are looked at."""


def language_stage(settings: Languages) -> Stage | None:
    """Returns the stage that drops other languages; `None` if it has nothing to do.

    Raises:
      ConfigError: the model is not installed, or does not know a language that is kept.
    """
    if not settings.keep and not settings.count:
        return None
    identify = identifier(settings.keep)

    def stage(items: Sequence[Item]) -> Outcome:
        kept, dropped, counts = [], [], Counter()
        for item in items:
            code, probability = identify(item.text)
            counts[code] += 1
            if settings.keep and code not in settings.keep:
                dropped.append(dropped_item(item, "other_language", code))
            elif settings.keep and probability < settings.min_probability:
                dropped.append(dropped_item(item, "uncertain_language", probability))
            else:
                kept.append(item._replace(language=code))
        return Outcome(kept, dropped, counts)

    return stage


def identifier(known: Sequence[str] = ()) -> Callable[[str], tuple[str, float]]:
    """Returns a function from a text to its language and the probability of that.

    Args:
      known: languages that it has to know.
    """
    try:
        from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise needs("py3langid", "identifying languages", "no --language.keep") from None
    model = LanguageIdentifier.from_modelpath(MODEL_DIR / MODEL_FILE, norm_probs=True)
    lacking = [code for code in known if code not in set(model.labels)]
    require(
        not lacking,
        f"language.keep has {', '.join(lacking)}, which is not known; it can be"
        f" {' '.join(sorted(model.labels))}.",
    )

    def identify(text: str) -> tuple[str, float]:
        begin = max(0, (len(text) - SAMPLE) // 2)
        code, probability = model.classify(text[begin : begin + SAMPLE])
        return str(code), float(probability)

    return identify
