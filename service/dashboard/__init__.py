"""The page: who holds what, who waits, and what went wrong, for people. Rendered here, updated live, no build step."""
