"""The mathematics of Trimtab, offline and online: no I/O, no web, no torch."""
