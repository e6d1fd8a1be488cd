"""Where searches run: in processes of this machine, or on a Dask cluster. `port` says what both promise."""
