"""Values: everything that crosses a file, the wire or the store, and the error tree. Knows no formula."""
