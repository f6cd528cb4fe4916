"""What clients do to the instances while faults happen: crowds, wide traffic, coupons that run out, retries, leases."""
