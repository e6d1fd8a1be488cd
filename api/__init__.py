"""Every entry point: the HTTP service, its store and jobs, the command line."""
