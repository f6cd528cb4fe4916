"""What can go wrong in the database, in the database's own words. Callers translate; the cause is kept."""


class DatabaseError(Exception):
    """The database could not do what was asked: nothing was written, unless CommitUnknown says otherwise."""


class DatabaseDown(DatabaseError):
    """No connection to a server that takes writes could be had, or it was of no more use before COMMIT was sent:
    nothing was written.
    """


class Unusable(DatabaseDown):
    """The database is there, and is not one that we can work on."""


class CommitUnknown(DatabaseError):
    """COMMIT was under way, and there was no answer, or one that does not tell: it may or may not have been written."""


class IdTaken(DatabaseError):
    """A sequence is behind its table and gave an id that the table has already: nothing was written."""


class MayNotLook(DatabaseError):
    """The role lacks the right to read what was to be looked at: that look tells nothing, and others may."""


class Conflict(DatabaseError):
    """The transaction lost against others (deadlock, serialization) too often: nothing was written."""


class TimedOut(DatabaseError):
    """A statement or a row lock took longer than its limit: nothing was written."""
