"""How good an answer is: localizations against the truth, and uncertainty against what happened."""
