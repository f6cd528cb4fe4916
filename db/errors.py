"""What can go wrong in the database, in the database's own words. Callers translate; the cause is kept."""


class DatabaseError(Exception):
    """The database could not do what was asked."""


class DatabaseDown(DatabaseError):
    """No connection could be had, or it was lost before COMMIT was sent: nothing was written."""


class Unusable(DatabaseDown):
    """The database is there, and is not one that we can work on."""


class CommitUnknown(DatabaseError):
    """The connection was lost while COMMIT was under way: it may or may not have been written."""


class Conflict(DatabaseError):
    """The transaction lost against others (deadlock, serialization) too often: nothing was written."""


class TimedOut(DatabaseError):
    """A statement or a row lock took longer than its limit: nothing was written."""
