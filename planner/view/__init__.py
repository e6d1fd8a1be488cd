"""A plan for human eyes: pictures and tables."""
