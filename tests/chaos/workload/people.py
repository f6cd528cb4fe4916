"""Who takes part and what there is to enter: seeded before a run, the same for the same duration."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

RICH_INVITERS = range(1, 41)
RICH_INVITEES = range(41, 81)
POOR_INVITERS = range(101, 141)
POOR_INVITEES = range(141, 181)
RICH_COUPONS = 1_000_000
POOR_COUPONS = 2
SERVICE_USER = 1000
JOBS = ("job:1", "job:2")

HOT_PER_S = 90
WIDE_PER_S = 200
POOR_PER_S = 40
SPARE = 600

FRONT_BYTES = struct.calcsize("q")

SEED = """
INSERT INTO coupon_grant (user_id, coupon_id, count, reference)
    SELECT id, 1, %(rich)s, 'chaos-' || id FROM generate_series(1, 80) id
    UNION ALL SELECT id, 1, %(poor)s, 'chaos-' || id FROM generate_series(101, 180) id;
INSERT INTO user_coupon (user_id, coupon_id, count)
    SELECT user_id, 1, count FROM coupon_grant;
INSERT INTO coupon_price (other_user_id, count) SELECT id, 1 + id %% 3 FROM generate_series(41, 80) id;
INSERT INTO appointment_info (user_id, invitee_user_id)
    SELECT 1 + n %% 40, 41 + (n / 7) %% 40 FROM generate_series(1, %(rich_appointments)s) n;
INSERT INTO appointment_info (user_id, invitee_user_id)
    SELECT 101 + n / 9 %% 40, 141 + n %% 40 FROM generate_series(1, %(poor_appointments)s) n;
CREATE TABLE chaos_register (name text PRIMARY KEY, fence bigint NOT NULL, value text NOT NULL, op text NOT NULL);
CREATE TABLE chaos_register_log (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, fence bigint NOT NULL, op text NOT NULL,
    accepted boolean NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Appointments:
    """Ids: `hot` ones are entered by crowds, one after the other; `poor` ones by people with few coupons.

    `people`: the inviter and the invitee of each; None where they are as SEED makes them.
    """

    hot: Sequence[int]
    wide: Sequence[int]
    poor: Sequence[int]
    people: Mapping[int, tuple[int, int]] | None = None

    @classmethod
    def for_duration(cls, duration_s: float) -> Appointments:
        """So many that a run of this length does not come to their end."""
        hot = int(HOT_PER_S * duration_s) + SPARE
        wide = int(WIDE_PER_S * duration_s) + SPARE
        poor = int(POOR_PER_S * duration_s) + SPARE
        return cls(range(1, hot + 1), range(hot + 1, hot + wide + 1), range(hot + wide + 1, hot + wide + poor + 1))

    @classmethod
    def of(cls, people: Mapping[int, tuple[int, int]], *, hot: int, wide: int) -> Appointments:
        """These appointments, so many of them hot and wide, and the rest poor."""
        ids = list(people)
        return cls(ids[:hot], ids[hot : hot + wide], ids[hot + wide :], people)

    def participants(self, appointment_id: int) -> tuple[int, int]:
        """Its inviter and its invitee."""
        if self.people is not None:
            return self.people[appointment_id]
        if appointment_id in self.poor:
            n = appointment_id - self.poor[0] + 1
            return 101 + n // 9 % 40, 141 + n % 40
        return 1 + appointment_id % 40, 41 + (appointment_id // 7) % 40


def seed(database_url: str, appointments: Appointments) -> None:
    """Fills a migrated, empty database. Raises psycopg2.Error."""
    connection = psycopg2.connect(database_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                SEED,
                {
                    "rich": RICH_COUPONS,
                    "poor": POOR_COUPONS,
                    "rich_appointments": len(appointments.hot) + len(appointments.wide),
                    "poor_appointments": len(appointments.poor),
                },
            )
            for name in JOBS:
                cursor.execute("INSERT INTO chaos_register VALUES (%s, 0, '', '')", (name,))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    finally:
        connection.close()


class Front:
    """How far the crowds have come, for the processes that meet them there: a number in a shared file."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def get(self) -> int:
        """The place among the hot appointments of the one that is entered next."""
        return int(struct.unpack_from("q", self._memory)[0])

    def set(self, place: int) -> None:
        """Moves it."""
        struct.pack_into("q", self._memory, 0, place)


@contextmanager
def front_in(path: Path) -> Iterator[Front]:
    """The shared number of this file, which is made where it is missing: 0, whoever of several comes first."""
    with path.open("ab") as made:
        made.truncate(FRONT_BYTES)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), FRONT_BYTES) as memory:
        yield Front(memory)
