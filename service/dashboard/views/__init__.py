"""The views: each reads what it shows, and hands it to its templates as plain values."""
