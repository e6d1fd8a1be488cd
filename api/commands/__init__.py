"""The commands of `trimtab`: parse, call, render. Errors leave as exceptions; api.cli turns them to exit codes."""
