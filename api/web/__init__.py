"""The web at `/`: pages for people, rendered on the server, on the same stores and functions as the API's routes."""
