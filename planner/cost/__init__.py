"""Formulas: seconds and bytes of a plan. estimate() is the only front door."""
