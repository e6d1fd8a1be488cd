"""Hardware and model data with units and sources, and how they are loaded."""
