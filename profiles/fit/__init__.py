"""How the fitted constants of the presets were found, and how to find them again (`make fit`)."""
