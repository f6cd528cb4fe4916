"""Fault injection: real instances, real servers, faults at points and by time, one history, pure checkers, a report."""
