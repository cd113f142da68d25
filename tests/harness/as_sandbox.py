"""The sandbox's model and questions in place of a config's real ones: quick, and learnt by any recipe."""

from stasc_ray import config
from stasc_ray.recipes import section_of

SPLITS = (("train", 60), ("dev", 20), ("test", 30))
_PROMPTS = config.validate({"prompts": {"preset": "sandbox"}}, section_of).prompts
QUESTIONS = [f"questions.{split}={{source='sandbox', limit={count}}}" for split, count in SPLITS]
ASKED = [
    f"questions.preset={config.Config().questions.preset}",
    *(
        f"prompts.{name}={config.as_text(value)}"
        for name, value, *_ in config.walk(_PROMPTS)
        if "." not in name
    ),
    "reward.name=exact_match",
    "reward.scope=after_marker",
    "reward.max_answer_words=none",
    "sampling.initial.max_tokens=64",
    "sampling.correction.max_tokens=64",
    "evaluation.samples=2",
    "algorithm.iterations=1",
]
