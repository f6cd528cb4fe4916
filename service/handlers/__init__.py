"""Request in, use case, response out."""
