"""Sorted by cost: unit (no servers), integration (one layer on real servers), contract (the whole over sockets), bench."""
