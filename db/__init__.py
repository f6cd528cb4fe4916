"""Postgres: the schema, the charging transaction, appointments, coupons, the audit. Knows nothing of HTTP or locks."""
