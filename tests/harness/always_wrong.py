"""A user's reward, found through PYTHONPATH, that no answer earns."""


def grade(answer, references):
    return 0.0
