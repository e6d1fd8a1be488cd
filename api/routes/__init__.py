"""HTTP: parse, call, render. Each module makes the router of one kind of thing."""
