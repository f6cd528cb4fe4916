"""Sorted by cost: unit (no servers), integration (one layer on real servers), contract (over sockets), bench."""
