"""The offline stage: decision tree, exact choice, shortlist."""
