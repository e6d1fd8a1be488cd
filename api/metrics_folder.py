"""Where processes behind one address leave their counts for each other."""

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names the folder; the Prometheus client reads it when it is loaded, so it must be set before."""
