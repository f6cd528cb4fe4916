"""`locks/` in virtual time: one process, no sockets, no waiting, and everything follows from a seed."""
