"""Real lock stores for tests, as children of the test run: one server, a Sentinel group, a cluster, a shifted clock."""
