"""What is read from the tables, as values that others may keep."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)  # not frozen: that costs a microsecond each
class ChargeRecord:
    """The one charge of an appointment: one row of user_consume."""

    id: int
    payer_id: int
    coupon_id: int
    prop_id: int
    count: int
    charged_at: datetime
