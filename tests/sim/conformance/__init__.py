"""The same random commands to a real server and to the model of it: replies, messages and keys must be the same.

The real server's clocks stand still except when a step moves them, so that tokens and ends are compared exactly, and
all is compared as bytes after every step. Not compared, since a real server's answer is another one each time: the
numbers of clients; the order of KEYS, of a large hash, of the fields of JSON that a script writes, and that in which
keys go when many go at once; whether Redis 8's own round takes a key in its last millisecond; which keys are evicted,
and which ones a full tracking table forgets (test_rare.py looks at those two). Left out: that who is blocked is sent
away when a server becomes a replica, and commands that neither `locks` nor python-redis-lock sends.
"""
