"""A pure model of the lock store: its keys, its commands, the real Lua, Pub/Sub, tracking; no I/O and no clock."""

from tests.sim.redis.clients import Client
from tests.sim.redis.dialects import DIALECTS, VALKEY_9, Dialect
from tests.sim.redis.keyspace import Data
from tests.sim.redis.model import Model
from tests.sim.redis.refusals import Refusal

__all__ = ["DIALECTS", "VALKEY_9", "Client", "Data", "Dialect", "Model", "Refusal"]
