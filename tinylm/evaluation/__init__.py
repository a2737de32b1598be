"""The log probability of each token of a text, and its users: scores, exact match, the loss of each token."""

from tinylm.evaluation.exact_match import ExactMatch, exact_match, score_answers
from tinylm.evaluation.score import Score, score_text

__all__ = ["ExactMatch", "Score", "exact_match", "score_answers", "score_text"]
