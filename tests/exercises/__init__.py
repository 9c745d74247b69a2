"""The questions: each one's solution, right ways and plausible wrong answers."""
